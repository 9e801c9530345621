"""Which keys of a state dict belong to which parameters: prefixes, heads, momentum copies, numbered children."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from sanitize.suspects.heads import is_head, is_momentum

WRAPPERS = re.compile(
    r"module|model|net|network|encoder|encoder_q|base_encoder|online_encoder|backbone|f|visual|trunk|_orig_mod|"
    r"state_dict|model_state_dict|student|online|resnet|feature_extractor|base_model|convnet"
)
"""Parts of keys that carry no meaning of their own."""
COUNTER = "num_batches_tracked"


@dataclass
class Match:
    """How a state dict falls apart.

    Attributes:
        prefix: What stands before the network's own names, for example ``module.encoder_q.``.
        state: The network's key -> tensor.
        source: The network's key -> key in the suspect, where it has one.
        missing: Keys that the network needs and the suspect lacks.
        mismatched: Keys whose shapes or kinds of number differ, as text.
        dropped: Keys in the suspect that are heads, projectors or momentum copies.
        unexpected: Keys in the suspect that are none of these.
        renumbered: Whether numbered children were matched by their order.
    """

    prefix: str = ""
    state: dict[str, Tensor] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    renumbered: bool = False

    @property
    def complete(self) -> bool:
        """Whether it can be loaded strictly."""
        return not (self.missing or self.mismatched or self.unexpected)


def find_prefixes(keys: Collection[str], expected: Collection[str]) -> list[str]:
    """Prefixes that make keys match the expected ones, best first.

    Best is what covers most; among equals what is no momentum copy; then what is shortest.

    Example:
        >>> find_prefixes(["encoder_k.fc.weight", "encoder_q.fc.weight"], ["fc.weight"])
        ['encoder_q.', 'encoder_k.']
    """
    wanted = set(expected)
    counts: dict[str, int] = {}
    for key in keys:
        parts = key.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in wanted:
                prefix = "".join(f"{part}." for part in parts[:start])
                counts[prefix] = counts.get(prefix, 0) + 1

    def rank(prefix: str) -> tuple[int, bool, int, str]:
        return -counts[prefix], any(map(is_momentum, prefix.split("."))), len(prefix), prefix

    return sorted(counts, key=rank)


def match(
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    prefix: str,
    head_prefixes: Collection[str],
    *,
    heads: bool,
) -> Match:
    """Sort the keys of a state dict under one prefix.

    Args:
        state: The suspect's key -> tensor.
        expected: The network's key -> tensor.
        prefix: What stands before the network's names in the suspect.
        head_prefixes: Key prefixes that the architecture names as heads.
        heads: Whether other keys that are named like a head or projector may be dropped (an encoder's).
    """
    result = Match(prefix)
    for key, tensor in expected.items():
        found = state.get(prefix + key)
        if found is None and key.endswith(COUNTER):
            found = tensor.clone().zero_()  # absent in files from before torch 0.4.1; has no influence in eval mode
        if found is None:
            result.missing.append(prefix + key)
        elif found.shape != tensor.shape:
            result.mismatched.append(f"{prefix + key} has {tuple(found.shape)}, needed {tuple(tensor.shape)}")
        elif found.is_floating_point() != tensor.is_floating_point():
            result.mismatched.append(f"{prefix + key} has {found.dtype}, needed {tensor.dtype}")
        else:
            result.state[key] = found
            if prefix + key in state:
                result.source[key] = prefix + key
    for key in state:
        if key.startswith(prefix) and key[len(prefix) :] in expected:
            continue
        droppable = is_droppable(key, prefix, head_prefixes, heads=heads)
        (result.dropped if droppable else result.unexpected).append(key)
    return result


def is_droppable(key: str, prefix: str, head_prefixes: Collection[str], *, heads: bool) -> bool:
    """Whether a key outside the network is known to be no part of it."""
    inner = key[len(prefix) :] if key.startswith(prefix) else None
    if inner is not None and any(inner.startswith(f"{head}.") for head in head_prefixes):
        return True
    parts = (inner if inner is not None else key).split(".")
    # Through wrappers (module.encoder_k.conv1.weight) down to the first part that means something.
    while len(parts) > 1 and WRAPPERS.fullmatch(parts[0]):
        parts = parts[1:]
    return is_momentum(parts[0]) or (heads and is_head(parts[0]))


def renumber(keys: Collection[str], network: nn.Module) -> dict[str, str]:
    """Names for the children of a network that was put into an `nn.Sequential`, found by their order.

    Much self-supervised code builds its encoder as ``nn.Sequential(*list(resnet18().children())[:-1])``, whose keys are
    ``0.weight``, ``4.0.conv1.weight`` ... The shapes are checked afterwards, as for any other key.

    Returns:
        Key in the suspect -> key with names in place of numbers; empty where the keys are not of that form.
    """
    names = [name for name, child in network.named_children() if next(iter(child.state_dict()), None) is not None]
    stems: dict[str, set[int]] = {}
    for key in keys:
        parts = key.split(".")
        for position, part in enumerate(parts[:-1]):
            if part.isdecimal():
                stems.setdefault("".join(f"{p}." for p in parts[:position]), set()).add(int(part))
                break
    renamed: dict[str, str] = {}
    for stem, numbers in stems.items():
        if len(numbers) != len(names) or is_droppable(f"{stem}0", "", (), heads=True):
            continue
        for number, name in zip(sorted(numbers), names, strict=True):
            start = f"{stem}{number}."
            renamed |= {key: f"{stem}{name}.{key[len(start) :]}" for key in keys if key.startswith(start)}
    return renamed
