"""Data sets that lie: Parquet, npz and image folders."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.data.test_decoding import _bomb
from tests.data.test_sources import PIXELS, _parquet, _png
from tests.hostile.corpus import enter

PNG = _png(PIXELS[0])


def data(name: str, build: Callable[[Path], Path], refused: str) -> None:
    enter(name, build, reader="data", refused=refused, error="DataError")


def parquet(payload: bytes) -> Callable[[Path], Path]:
    """A Parquet file with one bad image among good ones."""
    payloads: list[bytes | None] = [PNG] * 20
    payloads[7] = payload
    return lambda folder: _parquet(folder / "a.parquet", payloads=payloads)


def header(kind: bytes, *fields: bytes) -> bytes:
    return kind + b"".join(fields)


PICTURES = {
    "png-bomb": _bomb(50_000, 50_000),
    "png-line": _bomb(80_000_000, 1),
    "png-cut-short": PNG[:60],
    "png-text-bomb": PNG[:33] + (1 << 20).to_bytes(4) + b"zTXt" + bytes(64),
    "bmp-bomb": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "bmp-negative-size": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 90, 0, 0, 54, 40, -5, -5, 1, 24, 0, 0, 0, 0, 0, 0),
    "gif-bomb": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6) + b",",
    "ppm-bomb": b"P6 100000 100000 255\n" + bytes(64),
    "ppm-endless-number": b"P6 " + b"9" * 100_000,
    "tiff-loop": b"II*\x00\x08\x00\x00\x00"
    + struct.pack("<H", 1)
    + struct.pack("<HHII", 256, 4, 1, 8)
    + struct.pack("<I", 8),
    "tiff-huge-strips": b"II*\x00\x08\x00\x00\x00"
    + struct.pack("<H", 2)
    + struct.pack("<HHII", 256, 4, 0xFFFFFFFF, 1) * 2,
    "jpeg-bomb": b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03"
    + b"\x01\x11\x00\x02\x11\x01\x03\x11\x01"
    + b"\xff\xd9",
    "webp-bomb": b"RIFF"
    + (1 << 31).to_bytes(4, "little")
    + b"WEBPVP8X"
    + struct.pack("<I", 10)
    + b"\x10"
    + b"\xff" * 9,
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n(%pipe%touch canary) (w) file\n",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
}
for key, picture in PICTURES.items():
    data(f"picture-{key}", parquet(picture), r"1 of 20 images .* row 7")


def table(folder: Path, columns: dict[str, object], **options: object) -> Path:
    pq.write_table(pa.table(columns), folder / "a.parquet", **options)
    return folder / "a.parquet"


def external_paths(folder: Path) -> Path:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return table(folder, {"image": pa.array([{"bytes": None, "path": "/etc/passwd"}] * 3, kind)})


def repeated(folder: Path) -> Path:
    """One image of 400 kB, ten thousand times: a file of a few kilobytes, and gigabytes when unpacked at once."""
    value = pa.array([PNG + bytes(400_000)], pa.binary())
    index = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10_000, np.int32)), value)
    images = pa.StructArray.from_arrays([index.cast(pa.dictionary(pa.int32(), pa.binary()))], ["bytes"])
    return table(folder, {"image": images}, compression="zstd")


def claimed_rows(folder: Path) -> Path:
    """The footer announces 2**55 rows."""
    path = _parquet(folder / "a.parquet", row_group_size=20)
    content = path.read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    body, footer = content[: -8 - length], content[-8 - length : -8]
    forged = footer.replace(b"\x16\x28", b"\x16" + b"\x80" * 7 + b"\x80\x01")  # zigzag of 20 rows -> of 2**55
    assert forged != footer
    path.write_bytes(body + forged + len(forged).to_bytes(4, "little") + b"PAR1")
    return path


def random_page(folder: Path) -> Path:
    path = _parquet(folder / "a.parquet", compression="none")
    content = bytearray(path.read_bytes())
    content[40:400] = np.random.default_rng(0).integers(0, 256, 360, dtype=np.uint8).tobytes()
    path.write_bytes(content)
    return path


def _twice(folder: Path) -> Path:
    images = pa.array([{"bytes": PNG}] * 3)
    pq.write_table(pa.Table.from_arrays([images, images], names=["image", "image"]), folder / "a.parquet")
    return folder / "a.parquet"


def _cut(path: Path) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


data("parquet-paths-to-other-files", external_paths, "no bytes")
data("parquet-image-of-text", lambda f: table(f, {"image": pa.array([{"bytes": "x"}])}), "binary data")
data(
    "parquet-image-of-lists",
    lambda f: table(f, {"image": pa.array([{"bytes": [1, 2]}])}),
    "binary data|no image column|damaged",
)
data("parquet-no-image", lambda f: table(f, {"a": [1]}), "no image column")
data("parquet-columns-twice", _twice, "no image column|not a readable|damaged|binary data|columns")
data("parquet-claims-rows", claimed_rows, "rows|readable|damaged|announced")
data("parquet-random-page", random_page, "damaged|cannot be read|readable")
data("parquet-half", lambda f: _cut(_parquet(f / "a.parquet")), "not a readable Parquet")
data("parquet-huge-label", lambda f: _parquet(f / "a.parquet", labels=[2**62] * 20), "label")
enter("parquet-dictionary-bomb", repeated, reader="data")


def npz(head: bytes, body: bytes = b"", *, compression: int = zipfile.ZIP_STORED) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "a.npz", "w", compression) as archive:
            archive.writestr("images.npy", head + body)
        return folder / "a.npz"

    return build


def npy(shape: str, version: int = 1) -> bytes:
    content = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(content)) + content


data("npz-shape-of-code", npz(npy("(__import__('os').getpid(),)")), "not a readable")
data("npz-negative-shape", npz(npy("(-5, 8, 8, 3)"), bytes(99)), "not a readable|must be")
data("npz-huge-shape", npz(npy("(1099511627776, 8, 8, 3)")), "not a readable")
data("npz-nested-header", npz(npy("(" * 60_000, 2)), "not a readable")
data("npz-header-of-gigabytes", npz(b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + bytes(99)), "not a readable")
data("npz-announces-more", npz(npy("(32768, 32768, 3, 1)"), bytes(3 << 20), compression=8), "not a readable")
data("npz-half", lambda f: _cut(npz(npy("(2, 8, 8, 3)"), bytes(384))(f)), "not a readable")
data("npz-floats-with-nan", lambda f: _npz(f, np.full((2, 8, 8, 3), np.nan, np.float32)), "uint8 from 0 to 255")


def _npz(folder: Path, images: np.ndarray) -> Path:
    np.savez(folder / "a.npz", images=images)
    return folder / "a.npz"


def pictures(**files: bytes) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        (folder / "images").mkdir()
        for leaf, content in files.items():
            (folder / "images" / leaf.replace("__", ".")).write_bytes(content)
        return folder / "images"

    return build


def loop(folder: Path) -> Path:
    (folder / "images").mkdir()
    (folder / "images" / "again").symlink_to(".")
    return folder / "images"


data("folder-of-text-named-png", pictures(a__png=PNG, b__png=b"#!/bin/sh\n"), "b.png: not a picture")
GIGABYTES = PNG[:33] + (0xFFFFFFF0).to_bytes(4) + PNG[37:]  # the length of a chunk; it is reserved before it is read
data("folder-of-gigabytes", pictures(a__png=GIGABYTES, b__png=PNG), "a.png: it asks for more memory")
data("folder-of-nothing", pictures(a__exe=b"MZ"), "no images")
data("folder-that-holds-itself", loop, "no images|cannot be read")
data("file-of-no-form", lambda f: pictures(a__tar=b"x")(f) / "a.tar", "no form that is read")
enter("folder-long-unicode-names", pictures(**{"\u00e9" * 120 + "__png": PNG, "b__png": PNG}), reader="data")


def nested_metadata(folder: Path) -> Path:
    path = _parquet(folder / "a.parquet")
    deep = '{"info": {"features": ' + "[" * 50_000 + "]" * 50_000 + "}}"
    pq.write_table(pq.read_table(path).replace_schema_metadata({"huggingface": deep}), path)
    return path


enter("parquet-metadata-nested", nested_metadata, reader="data")
