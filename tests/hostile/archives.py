"""Zip archives, safetensors and MLflow folders that lie about what is in them."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from tests.hostile.corpus import enter, unsafe
from tests.hostile.pickles import CANARY, PROTO_2, SYSTEM, _command, state, tensor, text, torch_zip

GOOD = state(w=tensor((4,), (1,)))


def archive(*members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as target:
        for key, content in members:
            target.writestr(key, content)
    return stream.getvalue()


def file(leaf: str, content: bytes | Callable[[Path], bytes]):
    def build(folder: Path) -> Path:
        (folder / leaf).write_bytes(content(folder) if callable(content) else content)
        return folder / leaf

    return build


def with_member(key: str, content: bytes | Callable[[Path], bytes], **options: int):
    """A good torch file with one member more."""

    def build(folder: Path) -> Path:
        path = torch_zip(folder / "model.pth", GOOD)
        with zipfile.ZipFile(path, "a", **options) as target:
            target.writestr(key, content(folder) if callable(content) else content)
        return path

    return build


def nested(levels: int) -> Callable[[Path], bytes]:
    """A payload inside archives inside archives."""

    def content(folder: Path) -> bytes:
        made = PROTO_2 + SYSTEM + _command(folder) + b"\x85R."
        for _ in range(levels):
            made = archive(("inner.pkl", made))
        return made

    return content


def edited(find: bytes, change: Callable[[bytearray, int], None]):
    """A good torch file with some bytes of its structure changed, at the first place where `find` is."""

    def build(folder: Path) -> Path:
        path = torch_zip(folder / "model.pth", GOOD)
        content = bytearray(path.read_bytes())
        change(content, content.index(find))
        path.write_bytes(content)
        return path

    return build


def put(offset: int, form: str, value: int) -> Callable[[bytearray, int], None]:
    return lambda content, place: struct.pack_into(form, content, place + offset, value)


def overlapping(folder: Path) -> Path:
    """Many entries of the directory that share one compressed kernel: small on disk, and without end unpacked."""
    kernel = zlib.compressobj(wbits=-15)
    body = kernel.compress(os.urandom(4000) + bytes(300_000)) + kernel.flush()
    local = struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 8, 0, 0, 0, len(body), 304_000, 4, 0) + b"0000" + body
    entries = b"".join(
        struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 8, 0, 0, 0, len(body), 304_000, 4, 0, 0, 0, 0, 0, 0)
        + b"%04d" % number
        for number in range(5000)
    )
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 5000, 5000, len(entries), len(local), 0)
    (folder / "model.pth").write_bytes(local + entries + end)
    return folder / "model.pth"


CENTRAL, END = b"PK\x01\x02", b"PK\x05\x06"
unsafe("zip-in-zip", with_member("archive/extra.zip", nested(2)), r"posix\.system")
unsafe("zip-in-zip-too-deep", with_member("archive/extra.zip", nested(6)), "nested too deep")
unsafe(
    "zip-nested-bomb",
    with_member("archive/extra.zip", archive(("0", bytes(64 << 20)), compression=8)),
    "decompression bomb",
)
unsafe("zip-overlapping-bomb", overlapping, "overlap")
unsafe("zip-member-up", with_member("archive/../../evil", b"1"), "leaves the folder")
unsafe("zip-member-backslash", with_member("archive\\..\\evil", b"1"), "leaves the folder")
unsafe("zip-member-dot", with_member("./", b""), "no name")
unsafe("zip-member-encrypted", edited(CENTRAL, put(8, "<H", 1)), "encrypted")
unsafe("zip-member-lzma", with_member("archive/data/1", bytes(4000), compression=zipfile.ZIP_LZMA), "compression")
unsafe("zip-member-bzip2", with_member("archive/data/1", bytes(4000), compression=zipfile.ZIP_BZIP2), "compression")
unsafe("zip-member-link", edited(CENTRAL, put(38, "<I", 0o120777 << 16)), "symbolic link")
unsafe("zip-directory-of-gigabytes", edited(END, put(12, "<I", 0xFFFFFFF0)), "too many members")
enter(
    "zip-directory-beyond-the-end",
    edited(END, put(16, "<I", 0x7FFFFFFF)),
    refused="corrupt|cut short|before the first",
    error="*",
)
enter("zip-local-name-differs", edited(b"archive/data.pkl", put(0, "<B", ord("X"))), refused="corrupt|differ")
enter(
    "zip-member-beyond-the-end",
    edited(CENTRAL, put(42, "<I", 0x7FFFFFF0)),
    refused="before the first|corrupt|overlap",
    error="*",
)
enter("zip-wrong-checksum", edited(CENTRAL, put(16, "<I", 12345)), refused="corrupt|partly|in part", error="*")
enter("zip-member-name-of-60000-characters", with_member("archive/" + "n" * 60_000, b"1"))
enter("zip-member-name-right-to-left", with_member("archive/\u202ehtp.lkp", b"1"))
enter("zip-empty", file("model.pth", archive()), refused="zip archive|weights")
enter("zip-two-pickles", file("model.pth", archive(("a/data.pkl", GOOD), ("b/data.pkl", GOOD))), refused="2 pickles")
enter("zip-big-endian", file("model.pth", archive(("a/data.pkl", GOOD), ("a/byteorder", b"big"))), refused="big-endian")
enter("zip-half", lambda folder: _half(torch_zip(folder / "model.pth", GOOD)), refused="corrupt|cut short")


def _half(path: Path) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def program(changes: dict[str, object], *, config: str | None = None) -> Callable[[Path], Path]:
    """A torch.export archive whose description of one weight was changed."""
    sizes = {"sizes": [{"as_int": 4}], "strides": [{"as_int": 1}], "storage_offset": {"as_int": 0}, "dtype": 7}
    entry = {"path_name": "weight_0", "use_pickle": False, "tensor_meta": sizes}
    entry = {**entry, **{k: v for k, v in changes.items() if k in entry}}
    entry["tensor_meta"] = {**sizes, **{k: v for k, v in changes.items() if k in sizes}}
    text_ = config if config is not None else json.dumps({"config": {"w": entry}})
    return file(
        "model.pt2",
        archive(
            ("m/archive_format", b"pt2"),
            ("m/data/weights/model_weights_config.json", text_.encode()),
            ("m/data/weights/weight_0", bytes(16)),
        ),
    )


enter("export-plain", program({}))
unsafe("export-pickled-weight", program({"use_pickle": True}), "pickled instead of raw")
enter("export-path-outside", program({"path_name": "../../../etc/passwd"}), refused="unknown form")
enter("export-path-missing", program({"path_name": "weight_9"}), refused="missing")
enter("export-huge-size", program({"sizes": [{"as_int": 1 << 62}]}), refused="do not fit|reaches element")
enter("export-negative-stride", program({"strides": [{"as_int": -1}]}), refused="do not fit")
enter("export-size-of-text", program({"sizes": [{"as_int": "__import__('os')"}]}), refused="unknown form")
enter("export-unknown-dtype", program({"dtype": 99}), refused="dtype")
enter("export-nested-json", program({}, config="[" * 200_000), refused="not JSON")
enter("export-no-weights", program({}, config='{"config": {}}'), refused="lists no weights")
enter("export-half", lambda folder: _half(program({})(folder)), refused="corrupt|cut short")


def safetensors(header: object, numbers: bytes = bytes(16), length: int | None = None) -> bytes:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(content) if length is None else length).to_bytes(8, "little") + content + numbers


def one(**changes: object) -> dict[str, object]:
    return {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **changes}}


HALF = {"dtype": "F32", "shape": [2]}
for key, content in {
    "overlapping": safetensors({"a": one()["w"], "b": {**HALF, "data_offsets": [8, 16]}}),
    "out-of-range": safetensors(one(data_offsets=[0, 1 << 40])),
    "beyond-the-end": safetensors(one(data_offsets=[16, 32])),
    "backwards": safetensors(one(data_offsets=[16, 0])),
    "negative-offset": safetensors(one(data_offsets=[-16, 0])),
    "hole": safetensors({"a": {**HALF, "data_offsets": [0, 8]}, "b": {**HALF, "data_offsets": [16, 24]}}, bytes(24)),
    "trailing-bytes": safetensors(one(), bytes(32)),
    "huge-shape": safetensors(one(shape=[1 << 62, 1 << 62])),
    "negative-shape": safetensors(one(shape=[-4])),
    "shape-that-differs": safetensors(one(shape=[5])),
    "unknown-dtype": safetensors(one(dtype="F33")),
    "header-beyond-the-end": safetensors(one(), length=1 << 29),
    "nested-header": safetensors(b'{"a":' * 50_000),
    "header-of-zeros": (64).to_bytes(8, "little") + b"{" + bytes(80),
    "header-not-utf-8": safetensors(b'{"\xff\xfe": 1}'),
    "metadata-of-numbers": safetensors({"__metadata__": {"a": 1}, **one()}),
    "half": safetensors(one())[:-9],
}.items():
    enter(f"safetensors-{key}", file("model.safetensors", content), refused="safetensors")

DOUBLE = b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
enter("safetensors-keys-twice", file("model.safetensors", safetensors(DOUBLE)), refused="safetensors")
enter(
    "safetensors-header-of-exabytes",
    file("model.safetensors", safetensors(one(), length=1 << 62)),
    refused="no known format",
)
enter("safetensors-nothing-in-it", file("model.safetensors", safetensors(b"{}        ", b"")), refused="no tensors")
enter(
    "safetensors-nan",
    file("model.safetensors", safetensors(one(dtype="F16", shape=[2], data_offsets=[0, 4]), b"\x00\x7e\x00\x00")),
    refused="NaN or infinite",
)
enter("safetensors-float8", file("model.safetensors", safetensors(one(dtype="F8_E4M3", shape=[16]))), refused="dtype")
enter("safetensors-long-key", file("model.safetensors", safetensors({"k" * 500_000: one()["w"]})))
enter("safetensors-unicode-key", file("model.safetensors", safetensors({"\u202e\U0001f4a3\x00": one()["w"]})))

MLMODEL = "flavors: {pytorch: {model_data: data}}\n"


def folder_model(mlmodel: str | bytes, **files: bytes) -> Callable[[Path], Path]:
    """An MLflow model folder around good weights."""

    def build(folder: Path) -> Path:
        root = folder / "model"
        root.mkdir()
        (root / "MLmodel").write_bytes(mlmodel if isinstance(mlmodel, bytes) else mlmodel.encode())
        (root / "model.safetensors").write_bytes(safetensors(one()))
        for leaf, content in files.items():
            (root / leaf.replace("__", ".")).write_bytes(content)
        return root

    return build


LAUGHS = "a: &a [l, l, l]\n" + "".join(
    f"{c}: &{c} [{', '.join([f'*{p}'] * 9)}]\n" for p, c in zip("abcdefg", "bcdefgh", strict=True)
)
unsafe("mlmodel-billion-laughs", folder_model(LAUGHS + MLMODEL), "alias bomb")
unsafe(
    "mlmodel-merge-bomb",
    folder_model("a: &a {x: 1}\n" + "".join(f"b{n}: {{<<: *a}}\n" for n in range(40)) + MLMODEL),
    "alias bomb",
)
unsafe("mlmodel-nested", folder_model("{a: " * 3000), "nested deeper")
unsafe("mlmodel-huge", folder_model("a: " + "x" * 2_000_000), "absurd")
enter("mlmodel-of-itself", folder_model("a: &a [*a]\n" + MLMODEL))
enter(
    "mlmodel-python-object",
    lambda folder: folder_model(f"a: !!python/object/apply:os.system ['touch {folder / CANARY}']")(folder),
    refused="not readable as YAML",
)
enter("mlmodel-bad-date", folder_model("a: 2026-99-99\n"), refused="not readable as YAML")
enter("mlmodel-number-of-many-digits", folder_model("a: " + "9" * 100_000), refused="not readable as YAML")
enter("mlmodel-unhashable-key", folder_model("? {a: b}\n: c\n"), refused="not readable as YAML")
enter("mlmodel-bad-binary", folder_model("a: !!binary '='\n" + MLMODEL))
enter("mlmodel-bad-bytes", folder_model(b"\xff\xfe\x00\xd8"), refused="not readable")
enter("mlmodel-flavors-of-another-kind", folder_model("flavors: [1, 2]\n"))
unsafe("mlmodel-loader", folder_model("flavors: {python_function: {loader_module: evil.loader}}\n"), r"evil\.loader")
enter(
    "mlmodel-requirements",
    folder_model(MLMODEL, requirements__txt=b"torch @ file:///tmp/evil\n"),
    finding="artifact-requirements",
)
enter("mlmodel-native-code", folder_model(MLMODEL, hook__so=b"\x7fELF"), finding="artifact-code")
enter(
    "folder-compressed-file", folder_model(MLMODEL, extra__bin=b"\x1f\x8b" + bytes(30)), finding="artifact-opaque-file"
)
unsafe(
    "folder-second-pickle",
    lambda folder: folder_model(MLMODEL, extra__bin=PROTO_2 + SYSTEM + _command(folder) + b"\x85R.")(folder),
    r"posix\.system",
)


def linked(target: str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        root = folder_model(MLMODEL)(folder)
        (root / "data").symlink_to(target)
        return root

    return build


unsafe("folder-link-to-a-file", linked("/etc/passwd"), "symbolic link")
unsafe("folder-link-to-a-folder", linked("/"), "symbolic link")
unsafe("folder-link-to-itself", linked("."), "symbolic link")
unsafe("folder-link-to-nothing", linked("/nonexistent"), "symbolic link")


def deep(folder: Path) -> Path:
    root = folder_model(MLMODEL)(folder)
    (root / "/".join("d" * 20)).mkdir(parents=True)
    return root


def named(leaf: str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        root = folder_model(MLMODEL)(folder)
        (root / leaf).write_bytes(b"x")
        return root

    return build


unsafe("folder-deep", deep, "nested deeper")
unsafe("folder-name-right-to-left", named("a\u202etxt.exe"), "control characters")
unsafe("folder-name-with-a-line-break", named("a\nb"), "control characters")
enter("folder-name-of-255-bytes", named("n" * 255))
enter("folder-name-unicode", named("\U0001f4a3" * 60))
enter("text-only", file("model.pth", text("no pickle")), refused="no known format")
