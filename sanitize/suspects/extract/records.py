"""The inert records a pickle is read into, and the few calls whose meaning matters: tensors and containers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


class MachineError(Exception):
    """The pickle is corrupt, or does something that cannot be read as data."""


MAX_KEY = 64
"""Longest tuple that is hashed."""


def as_key(value: Any, depth: int = 0) -> Any:
    """The value, which is going to be hashed.

    Raises:
        MachineError: Tuples in tuples in tuples: a few bytes of pickle can stand for 2**60 leaves to be hashed.
    """
    if isinstance(value, tuple):
        if depth > 1 or len(value) > MAX_KEY:
            raise MachineError("a key of nested tuples that would take absurdly long to hash")
        for item in value:
            as_key(item, depth + 1)
    return value


@dataclass(frozen=True, eq=False)
class Global:
    """The name of a class or function; what it names is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, repr=False)
class Inert:
    """What a call or an object construction would have made."""

    origin: Any
    args: tuple[Any, ...] = ()
    attributes: dict[Any, Any] = field(default_factory=dict)
    items: list[Any] = field(default_factory=list)


@dataclass(frozen=True, eq=False, repr=False)
class Storage:
    """A reference to raw numbers beside the pickle; `dtype` is torch's name, or None for untyped bytes."""

    key: str
    dtype: str | None


@dataclass(frozen=True, eq=False, repr=False)
class TensorRecord:
    """A view of a storage, in elements; `unreadable` says why there is none."""

    storage: Storage | None
    dtype: str | None = None
    offset: int = 0
    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    unreadable: str | None = None


def call(function: Any, args: tuple[Any, ...]) -> Any:
    """What a call would give, for the few names that carry tensors and containers; a record of the call otherwise."""
    builder = _BUILDERS.get(str(function)) if isinstance(function, Global) else None
    if builder is None:
        return Inert(function, args)
    try:
        return builder(*args)
    except (TypeError, ValueError, IndexError) as error:
        raise MachineError(f"{function} with arguments that do not fit: {str(error)[:200]}") from error


def storage_of(identity: Any) -> Storage:
    """The storage that a persistent id names.

    Args:
        identity: torch's ("storage", storage class, key, location, number of elements).

    Raises:
        MachineError: It has another form.
    """
    if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] not in ("storage", b"storage"):
        raise MachineError("a persistent id that is not torch's")
    kind, key = identity[1:3]
    if not isinstance(kind, Global) or not isinstance(key, str | int | bytes):
        raise MachineError("a storage of no known kind")
    return Storage(key.decode() if isinstance(key, bytes) else str(key), _STORAGE_DTYPES.get(str(kind), str(kind)))


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> TensorRecord:
    if not isinstance(storage, Storage):
        raise ValueError("no storage")
    dtype = storage.dtype
    if len(rest) >= 3 and isinstance(rest[2], Global):  # _rebuild_tensor_v3 names the dtype of an untyped storage
        dtype = rest[2].name
    return TensorRecord(storage, dtype, int(offset), tuple(map(int, shape)), tuple(map(int, stride)))


def _unreadable(what: str) -> Callable[..., TensorRecord]:
    return lambda *_: TensorRecord(None, unreadable=what)


def _ordered(pairs: Any = (), *_: Any) -> dict[Any, Any]:
    if isinstance(pairs, Global):  # defaultdict(factory)
        return {}
    return {as_key(key): value for key, value in (pairs.items() if isinstance(pairs, dict) else pairs)}


_STORAGE_DTYPES: dict[str, str | None] = {
    "torch.FloatStorage": "float32",
    "torch.DoubleStorage": "float64",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
    "torch.storage.UntypedStorage": None,
} | {
    f"torch.cuda.{name}Storage": dtype
    for name, dtype in {"Float": "float32", "Double": "float64", "Half": "float16", "Long": "int64"}.items()
}

_BUILDERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": _ordered,
    "builtins.dict": _ordered,
    "builtins.set": lambda items=(): set(map(as_key, items)),
    "builtins.frozenset": lambda items=(): frozenset(map(as_key, items)),
    "builtins.list": list,
    "builtins.tuple": tuple,
    "torch.Size": tuple,
    "copyreg._reconstructor": lambda kind, *_: Inert(kind),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": lambda data, *_: data,
    "torch.nn.parameter.Parameter": lambda data=None, *_: data,
    "torch.nn.parameter.Buffer": lambda data=None, *_: data,
    "torch._tensor._rebuild_from_type_v2": lambda function, _kind, args, *_: call(function, tuple(args)),
    "torch._utils._rebuild_qtensor": _unreadable("quantized"),
    "torch._utils._rebuild_sparse_tensor": _unreadable("sparse"),
    "torch._utils._rebuild_nested_tensor": _unreadable("nested"),
    "torch._utils._rebuild_meta_tensor_no_storage": _unreadable("without data (meta device)"),
    "torch._utils._rebuild_wrapper_subclass": _unreadable("a tensor subclass"),
}
