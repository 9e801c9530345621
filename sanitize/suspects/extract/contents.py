"""Finds weights among inert records: state dicts under any key, and modules by their registered members."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from .records import Global, Inert, TensorRecord

NOT_WEIGHTS = re.compile(
    r"(.*optim.*|opt|.*scheduler.*|.*scaler.*|amp|rng.*|.*rng_state.*|callbacks|loops|.*_metadata)"
)
"""Entries of a checkpoint beside the weights, by name; what they hold is never part of the network."""
MAX_DEPTH = 64
MAX_TENSORS = 200_000
MAX_VISITED = 1_000_000
"""Values looked at; containers that share their parts have many more paths than bytes."""
_INTERNAL = re.compile(r"_parameters|_buffers|_modules|_non_persistent_buffers_set|training|_version|_.*hooks.*")


class ContentsError(Exception):
    """There are no weights in it, or not in a form that can be read; `hostile` where a loader would run code."""

    def __init__(self, message: str, *, hostile: bool = False) -> None:
        super().__init__(message)
        self.hostile = hostile


@dataclass
class Contents:
    """What a pickle holds.

    Attributes:
        tensors: State-dict key -> view; keys of nested dicts are joined by dots, a single wrapping key is left out.
        is_module: Whether the weights come from a pickled module.
        skipped: Places that hold tensors but are not weights (optimizer, scalars beside the state dict).
        hidden: Instance attributes that replace or hook a module's behaviour: [place, attribute, description].
        visited: How many values were looked at.
    """

    tensors: dict[str, TensorRecord] = field(default_factory=dict)
    is_module: bool = False
    skipped: list[str] = field(default_factory=list)
    hidden: list[tuple[str, str, str]] = field(default_factory=list)
    visited: int = 0


def collect(root: Any) -> Contents:
    """The weights in what a pickle describes.

    Raises:
        ContentsError: No tensors, or too deep or too many.
    """
    contents = Contents()
    _collect(_unwrap(root, contents), "", contents, 0, top=True)
    if not contents.tensors:
        raise ContentsError(f"no weights in it: it holds {describe(root)}")
    return contents


def describe(value: Any, depth: int = 0) -> str:
    """A short text for a record, for messages.

    Example:
        >>> describe(Inert(Global("functools", "partial"), (Global("posix", "system"), "id")))
        "functools.partial(posix.system, 'id')"
    """
    if isinstance(value, Inert):
        inner = ", ".join(describe(item, depth + 1) for item in value.args[:3]) if depth < 3 else "..."
        return f"{describe(value.origin, depth + 1)}({inner})"
    if isinstance(value, Global):
        return str(value)
    if isinstance(value, TensorRecord):
        return "a tensor"
    if isinstance(value, dict) and depth == 0:
        return f"a dict with the keys {', '.join(repr(key)[:40] for key in list(value)[:8]) or '(none)'}"
    return repr(value)[:60] if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"


def is_module(value: Any) -> bool:
    """Whether a record has the attributes of a `torch.nn.Module`."""
    return isinstance(value, Inert) and all(isinstance(value.attributes.get(key), dict) for key in _MODULE_KEYS)


_MODULE_KEYS = ("_parameters", "_modules")


def _bears(value: Any, seen: set[int], depth: int = 0) -> bool:
    if isinstance(value, TensorRecord) or is_module(value):
        return True
    if not isinstance(value, dict) or id(value) in seen or depth > MAX_DEPTH:
        return False
    seen.add(id(value))
    return any(_bears(item, seen, depth + 1) for item in value.values())


def _unwrap(root: Any, contents: Contents) -> Any:
    # {"epoch": 3, "state_dict": {...}, "optimizer": {...}} -> the state dict
    for _ in range(MAX_DEPTH):
        if not isinstance(root, dict):
            return root
        nested = {
            key: value
            for key, value in root.items()
            if isinstance(key, str) and isinstance(value, dict | Inert) and _bears(value, set())
        }
        if not nested:
            return root
        for key, value in root.items():
            name = str(key)
            if key in nested and NOT_WEIGHTS.fullmatch(name):
                contents.skipped.append(name)
                del nested[key]
            elif isinstance(value, TensorRecord) and not value.shape:
                contents.skipped.append(name)
        loose = [v for v in root.values() if isinstance(v, TensorRecord) and v.shape]
        if len(nested) != 1 or loose:
            return {k: v for k, v in root.items() if str(k) not in contents.skipped}
        root = next(iter(nested.values()))
    return root


def _collect(value: Any, path: str, contents: Contents, depth: int, *, top: bool = False) -> None:
    contents.visited += 1
    if depth > MAX_DEPTH or len(contents.tensors) > MAX_TENSORS or contents.visited > MAX_VISITED:
        raise ContentsError(
            f"nested deeper than {MAX_DEPTH}, more than {MAX_TENSORS:,} tensors, or more than {MAX_VISITED:,} values"
        )
    if isinstance(value, TensorRecord):
        contents.tensors[path or "tensor"] = value
    elif is_module(value):
        contents.is_module = True
        _collect_module(value, path, contents, depth)
    elif isinstance(value, dict):
        for key, item in value.items():
            if isinstance(key, str):
                _collect(item, f"{path}.{key}" if path else key, contents, depth + 1)


def _collect_module(module: Inert, path: str, contents: Contents, depth: int) -> None:
    attributes = module.attributes
    transient = attributes.get("_non_persistent_buffers_set")
    transient = transient if isinstance(transient, set | frozenset) else frozenset()
    for group in ("_parameters", "_buffers", "_modules"):
        members = attributes.get(group)
        for key, item in members.items() if isinstance(members, dict) else ():
            if isinstance(key, str) and item is not None and not (group == "_buffers" and key in transient):
                _collect(item, f"{path}.{key}" if path else key, contents, depth + 1)
    for key, item in attributes.items():
        name = str(key)
        if "hooks" in name and isinstance(item, dict) and item:
            contents.hidden.append((path, name, describe(next(iter(item.values())))))
        elif isinstance(item, Global | Inert) and not _INTERNAL.fullmatch(name) and not is_module(item):
            contents.hidden.append((path, name, describe(item)))
