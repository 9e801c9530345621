"""Pickles, by hand: every opcode that can start a program, and every way to make a reader work without end."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

from tests.hostile.corpus import enter, unsafe
from tests.suspects.test_payloads import Payload

CANARY = "canary"
PROTO_2, PROTO_4 = b"\x80\x02", b"\x80\x04"


def name(module: str, attribute: str) -> bytes:
    """GLOBAL."""
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    """BINUNICODE."""
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def plain(value: object) -> bytes:
    """The opcodes of a plain value."""
    return pickle.dumps(value, protocol=2)[2:-1]


def storage(key: str = "0", kind: str = "FloatStorage", count: int = 4) -> bytes:
    """BINPERSID of a torch storage."""
    return b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + plain(count) + b"tQ"


def tensor(shape: object, stride: object, offset: int = 0, **of: object) -> bytes:
    """A view of a storage."""
    view = storage(**of) + plain(offset) + plain(shape) + plain(stride) + b"\x89" + name("collections", "OrderedDict")
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + view + b")RtR"


def state(**entries: bytes) -> bytes:
    """A state dict."""
    return PROTO_2 + b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u."


def torch_zip(path: Path, content: bytes, storages: dict[str, bytes] | None = None) -> Path:
    """An archive as torch.save writes it, around any pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", "little")
        for key, numbers in (storages or {"0": bytes(16)}).items():
            archive.writestr(f"archive/data/{key}", numbers)
        archive.writestr("archive/version", "3\n")
    return path


def in_torch_zip(content: bytes | Callable[[Path], bytes], storages: dict[str, bytes] | None = None):
    def build(folder: Path) -> Path:
        made = content(folder) if callable(content) else content
        return torch_zip(folder / "model.pth", made, storages)

    return build


SYSTEM = name("posix", "system")


def _command(folder: Path) -> bytes:
    return text(f"touch '{folder / CANARY}'")


def _consumed(folder: Path, new: bytes, extra: bytes) -> bytes:
    # tuple.__new__(tuple, map.__new__(map, os.system, [command])): NEWOBJ alone is enough to run something
    calls = name("builtins", "map") + SYSTEM + b"]" + _command(folder) + b"a\x86" + extra + new
    return PROTO_2 + name("builtins", "tuple") + calls + b"\x85" + extra + new + b"."


def _build(folder: Path) -> bytes:
    empty = name("argparse", "Namespace") + b")\x81"
    return PROTO_2 + empty + b"}" + text("__setstate__") + SYSTEM + b"sb" + _command(folder) + b"b."


def _memoized(folder: Path) -> bytes:
    return PROTO_4 + text("system") + b"\x94" + text("posix") + b"\x94h\x01h\x00\x93" + _command(folder) + b"\x85R."


def _nested_name(module: str, attribute: str) -> Callable[[Path], bytes]:
    """A module's own import, reached by a dotted name; the function makes the canary a folder."""
    return lambda folder: PROTO_4 + text(module) + text(attribute) + b"\x93" + text(str(folder / CANARY)) + b"\x85R."


def _code(folder: Path) -> bytes:
    return text(f"open({str(folder / CANARY)!r}, 'w').close()")


def _in_persistent_id(folder: Path) -> bytes:
    run = SYSTEM + _command(folder) + b"\x85R"
    return PROTO_2 + b"(" + text("storage") + run + text("0") + text("cpu") + plain(4) + b"tQ."


ARMED: dict[str, tuple[Callable[[Path], bytes], str]] = {
    f"pickle-protocol-{protocol}": (
        lambda folder, protocol=protocol: pickle.dumps(
            {"weights": [1.0], "x": Payload(os.system, f"touch '{folder / CANARY}'")}, protocol=protocol
        ),
        r"posix\.system",
    )
    for protocol in range(6)
} | {
    "pickle-reduce": (lambda folder: PROTO_2 + SYSTEM + _command(folder) + b"\x85R.", r"posix\.system"),
    "pickle-inst": (lambda folder: b"(" + _command(folder) + b"iposix\nsystem\n.", r"posix\.system"),
    "pickle-obj": (lambda folder: b"(" + SYSTEM + _command(folder) + b"o.", r"posix\.system"),
    "pickle-newobj": (lambda folder: _consumed(folder, b"\x81", b""), r"posix\.system"),
    "pickle-newobj-ex": (lambda folder: _consumed(folder, b"\x92", b"}"), r"posix\.system"),
    "pickle-build": (_build, r"posix\.system"),
    "pickle-memoized-name": (_memoized, r"posix\.system"),
    "pickle-name-through-logging": (_nested_name("logging", "os.mkdir"), r"logging\.os"),
    "pickle-name-through-torch": (
        _nested_name("torch.optim.optimizer", "torch.os.mkdir"),
        r"torch\.os\.mkdir",
    ),
    "pickle-python-2-name": (
        lambda folder: name("__builtin__", "eval") + _code(folder) + b"\x85R.",
        r"builtins\.eval",
    ),
    "pickle-python-2-module": (
        lambda folder: name("commands", "getoutput") + _command(folder) + b"\x85R.",
        r"subprocess\.getoutput",
    ),
    "pickle-in-a-persistent-id": (_in_persistent_id, r"posix\.system"),
    "pickle-after-the-first": (
        lambda folder: PROTO_2 + b"}." + SYSTEM + _command(folder) + b"\x85R.",
        r"posix\.system",
    ),
    "pickle-result-thrown-away": (
        lambda folder: PROTO_2 + SYSTEM + _command(folder) + b"\x85R0" + state(w=tensor((4,), (1,)))[2:],
        r"posix\.system",
    ),
}
"""Name -> the pickle that touches the canary in a folder, and what the refusal must name."""

for key, (content, named) in ARMED.items():
    unsafe(key, in_torch_zip(content), named)


def nested_dicts(levels: int, leaf: bytes) -> bytes:
    """Each level holds the one below twice: 2**levels paths, a few bytes a level."""
    content = leaf + b"\x94"
    for level in range(levels):
        below = b"h" + bytes([level])
        content += b"0}(" + text("a") + below + text("b") + below + b"u\x94"
    return PROTO_4 + content + b"."


def nested_tuples(levels: int) -> bytes:
    """A tuple of 2**levels leaves, as the key of a dict: hashing it takes as many steps."""
    content = b")\x94" + b"".join(
        b"0h" + bytes([level]) + b"h" + bytes([level]) + b"\x86\x94" for level in range(levels)
    )
    return PROTO_4 + b"}" + content + b"K\x01s."


unsafe(
    "pickle-name-of-a-download",
    in_torch_zip(
        PROTO_2 + name("torchvision.models._api", "load_state_dict_from_url") + text("http://127.0.0.1:9/x") + b"\x85R."
    ),
    "load_state_dict_from_url",
)
unsafe("pickle-extension-code", in_torch_zip(PROTO_2 + b"\x82\x01."), r"copyreg\.extension")
unsafe(
    "pickle-look-alike-name",
    in_torch_zip(PROTO_4 + text("p\u043esix") + text("system") + b"\x93" + text("id") + b"\x85R."),
    "p\u043esix",
)
unsafe(
    "pickle-overwrites-a-class",
    in_torch_zip(PROTO_2 + name("my_lab", "Net") + b"}" + text("forward") + name("my_lab", "f") + b"sb."),
    "my_lab",
)
enter("pickle-exponential-dict", in_torch_zip(nested_dicts(60, b"}")), refused="more than")
enter("pickle-exponential-state", in_torch_zip(nested_dicts(60, tensor((4,), (1,)))), refused="more than")
enter("pickle-exponential-key", in_torch_zip(nested_tuples(60)), refused="hash|nested")
enter(
    "pickle-of-itself",
    in_torch_zip(PROTO_4 + b"}\x94" + text("x") + b"h\x00s" + text("w") + tensor((4,), (1,)) + b"s."),
    refused="nested deeper",
)
enter("pickle-without-stop", in_torch_zip(state(w=tensor((4,), (1,)))[:-1]), refused="corrupt|without STOP")
enter("pickle-empty-stack", in_torch_zip(PROTO_2 + b"R."), refused="corrupt")
enter("pickle-no-mark", in_torch_zip(PROTO_2 + b"]e."), refused="corrupt|mark")
enter("pickle-forgotten-memo", in_torch_zip(PROTO_2 + b"h\x07."), refused="corrupt")
enter("pickle-out-of-band-buffer", in_torch_zip(b"\x80\x05\x97."), refused="NEXT_BUFFER")
enter(
    "pickle-declares-a-huge-string",
    in_torch_zip(PROTO_4 + b"\x8d" + (1 << 62).to_bytes(8, "little") + b"x."),
    refused="corrupt|memory",
)
enter("pickle-number-of-a-million-digits", in_torch_zip(b"L" + b"9" * 1_000_000 + b"L\n."), refused="corrupt")
enter(
    "pickle-frame-that-lies",
    in_torch_zip(PROTO_4 + b"\x95" + (1 << 60).to_bytes(8, "little") + state(w=tensor((4,), (1,)))[2:]),
)
enter("persistent-id-text", in_torch_zip(b"Pstorage\n."), refused="persistent id")
enter("persistent-id-number", in_torch_zip(PROTO_2 + b"K\x05Q."), refused="persistent id")
enter(
    "persistent-id-with-source-code",
    in_torch_zip(PROTO_2 + b"(" + text("module") + name("my_lab", "Net") + text("net.py") + text("import os") + b"tQ."),
    refused="persistent id|my_lab",
    error="UnsafeArtifactError",
)
enter("persistent-id-path", in_torch_zip(state(w=tensor((4,), (1,), key="../../../etc/passwd"))), refused="missing")
enter("persistent-id-huge-count", in_torch_zip(state(w=tensor((4,), (1,), count=1 << 60))))

VIEWS: dict[str, tuple[bytes, str]] = {
    "view-negative-stride": (tensor((4,), (-1,), offset=3), "do not fit"),
    "view-negative-offset": (tensor((2,), (1,), offset=-1), "do not fit"),
    "view-negative-shape": (tensor((-4,), (1,)), "do not fit"),
    "view-huge-shape": (tensor((1 << 63,), (1,)), "do not fit"),
    "view-huge-product": (tensor((1 << 40, 1 << 40), (0, 0)), "declare more than"),
    "view-of-nothing-that-overflows": (tensor((0, 1 << 61, 1 << 61), (1, 1, 1)), "do not fit"),
    "view-beyond-the-end": (tensor((2,), (1,), offset=3), "reaches element"),
    "view-stride-beyond-the-end": (tensor((2,), (1 << 40,)), "reaches element"),
    "view-with-fewer-strides": (tensor((2, 2), (1,)), "do not fit"),
    "view-of-ninety-axes": (tensor((1,) * 90, (1,) * 90), "do not fit"),
    "view-shape-of-text": (tensor("abcd", (1,)), "do not fit"),
    "view-dtype-complex": (tensor((2,), (1,), kind="ComplexFloatStorage"), "dtype"),
    "view-dtype-quantized": (tensor((4,), (1,), kind="QInt8Storage"), "dtype"),
    "view-dtype-of-another-module": (
        name("torch._utils", "_rebuild_tensor_v2") + b"(" + text("no storage") + b"K\x00)))tR",
        "do not fit",
    ),
}
for key, (view, why) in VIEWS.items():
    enter(key, in_torch_zip(state(w=view)), refused=why)

enter(
    "view-aliased", in_torch_zip(state(a=tensor((4,), (1,)), b=tensor((2,), (1,), offset=1), c=tensor((2, 3), (1, 1))))
)
enter(
    "view-of-one-storage-as-two-dtypes",
    in_torch_zip(state(a=tensor((4,), (1,)), b=tensor((2,), (1,), kind="LongStorage"))),
)
enter(
    "view-bool-that-is-neither",
    in_torch_zip(state(w=tensor((4,), (1,), kind="BoolStorage")), {"0": bytes([0, 1, 7, 255])}),
)
enter(
    "keys-twice",
    in_torch_zip(PROTO_2 + b"}(" + text("w") + tensor((4,), (1,)) + text("w") + tensor((2,), (1,)) + b"u."),
)
enter("keys-that-are-no-names", in_torch_zip(PROTO_2 + b"}K\x01" + tensor((4,), (1,)) + b"s."), refused="no weights")
enter("key-of-a-megabyte", in_torch_zip(state(**{"w" * 1_000_000: tensor((4,), (1,))})))
enter("key-with-terminal-codes", in_torch_zip(state(**{"w\x1b[2J": tensor((9,), (1,))})), refused="reaches element")
enter(
    "numbers-too-large-for-float32",
    in_torch_zip(state(w=tensor((1,), (1,), kind="DoubleStorage")), {"0": b"\x00\x00\x00\x00\x00\x00\xe0\x7e"}),
    refused="NaN or infinite",
)
enter(
    "numbers-nan-among-bfloat16",
    in_torch_zip(state(w=tensor((2,), (1,), kind="BFloat16Storage")), {"0": b"\x00\x00\xc0\xff"}),
    refused="NaN or infinite",
)
