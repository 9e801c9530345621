"""Reads the weights of one file as views of raw storages, and writes the storages as safetensors."""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from .archives import read_member
from .contents import Contents, ContentsError, collect
from .machine import Machine
from .records import Storage, TensorRecord

MAX_JSON_BYTES = 64 << 20
SLACK = 64 << 20
BYTES = {
    "float64": ("F64", 8),
    "float32": ("F32", 4),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "int64": ("I64", 8),
    "int32": ("I32", 4),
    "int16": ("I16", 2),
    "int8": ("I8", 1),
    "uint8": ("U8", 1),
    "bool": ("BOOL", 1),
}
"""torch's dtype name -> (name in safetensors, bytes an element); others are refused."""
_CODE = re.compile(
    r"__|\b(import|eval|exec|open|getattr|setattr|lambda|compile|globals|input)\b|[\w)\]'\"]\s*\.\s*[A-Za-z_]"
)
_EXPORT_DTYPES = {
    1: "uint8",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "float16",
    7: "float32",
    8: "float64",
} | {
    12: "bool",
    13: "bfloat16",
}
"""torch.export's ScalarType numbers."""


@dataclass
class Weights:
    """Views of storages, and where the storages are in an archive.

    Attributes:
        format: ``state-dict``, ``pickled-module`` or ``pt2``.
        contents: The views, and what was found beside them.
        members: Storage key -> archive member with its bytes.
        notes: Further remarks, each [rule, message].
    """

    format: str
    contents: Contents
    members: dict[str, str]
    notes: list[tuple[str, str]] = field(default_factory=list)


def read_torch_zip(archive: zipfile.ZipFile) -> Weights:
    """The weights in an archive that torch.save wrote.

    Raises:
        ArchiveError, MachineError, ContentsError: It is corrupt or holds no weights.
    """
    roots = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise ContentsError(f"{len(roots)} pickles named data.pkl where torch.save writes one")
    prefix = roots[0][: -len("data.pkl")]
    names = set(archive.namelist())
    if f"{prefix}byteorder" in names and read_member(archive, f"{prefix}byteorder", max_bytes=16) != b"little":
        raise ContentsError("its numbers are big-endian. Save it again on a little-endian machine")
    pickle = read_member(archive, roots[0], max_bytes=SLACK * 4)
    contents = collect(Machine(io.BytesIO(pickle)).run())
    keys = {record.storage.key for record in contents.tensors.values() if record.storage}
    members = {key: f"{prefix}data/{key}" for key in keys}
    return Weights("pickled-module" if contents.is_module else "state-dict", contents, members)


def read_pt2(archive: zipfile.ZipFile) -> Weights:
    """The weights in an archive that torch.export.save wrote: raw numbers described by JSON.

    Raises:
        ArchiveError, ContentsError: It is corrupt, holds several models, or its weights are pickled.
    """
    names = archive.namelist()
    configs = [name for name in names if name.endswith("_weights_config.json") and "/data/weights/" in f"/{name}"]
    if len(configs) != 1:
        raise ContentsError(f"{len(configs)} models in one archive; an archive with a single model is needed")
    folder = configs[0].rpartition("/")[0]
    entries = _json(archive, configs[0]).get("config")
    if not isinstance(entries, dict) or not entries:
        raise ContentsError(f"{configs[0]} lists no weights")
    pickled = sorted(key for key, entry in entries.items() if not isinstance(entry, dict) or entry.get("use_pickle"))
    if pickled:
        raise ContentsError(
            f"{len(pickled)} of its weights are pickled instead of raw numbers ({', '.join(pickled[:5])}): "
            "loading them with torch.export would run what they hold",
            hostile=True,
        )
    contents, members = Contents(), {}
    for key, entry in entries.items():
        try:
            contents.tensors[key] = _exported(entry)
            members[entry["path_name"]] = f"{folder}/{entry['path_name']}"
        except (KeyError, TypeError, ValueError) as error:
            raise ContentsError(f"{configs[0]} describes {key!r} in an unknown form ({error!r})") from error
    return Weights("pt2", contents, members, _notes_on_export(archive))


def write_storages(archive: zipfile.ZipFile, weights: Weights, target: Path, *, artifact_bytes: int) -> dict[str, Any]:
    """Copy the storages into a safetensors file, unpacked piece by piece.

    Args:
        archive: Where the storages are.
        weights: Which storages, and the views of them.
        target: The file to write.
        artifact_bytes: Size of the artifact; the views may not declare much more.

    Returns:
        Key -> {storage, offset, shape, stride}, in elements.

    Raises:
        ContentsError: A view is unreadable, leaves its storage, or all of them declare far more than the file holds.
    """
    views: dict[str, Any] = {}
    storages: dict[tuple[str, str], str] = {}
    declared = 0
    for key, record in weights.contents.tensors.items():
        storage, dtype = _checked(key, record)
        info = archive.NameToInfo.get(weights.members[storage.key])
        if info is None:
            raise ContentsError(f"the numbers of {key} ({weights.members[storage.key]}) are missing; it is corrupt")
        size = BYTES[dtype][1]
        _check_view(key, record, info.file_size // size)
        declared += math.prod(record.shape) * size
        if declared > 4 * artifact_bytes + SLACK:
            raise ContentsError(
                f"its tensors declare more than {declared:,} bytes, the artifact has {artifact_bytes:,}"
            )
        name = storages.setdefault((storage.key, dtype), f"storage-{len(storages)}")
        views[key] = {
            "storage": name,
            "offset": record.offset,
            "shape": list(record.shape),
            "stride": list(record.stride),
        }
    with target.open("wb") as stream:
        _write_safetensors(stream, archive, {name: (weights.members[k], d) for (k, d), name in storages.items()})
    return views


def _write_safetensors(stream: IO[bytes], archive: zipfile.ZipFile, storages: dict[str, tuple[str, str]]) -> None:
    header: dict[str, Any] = {}
    position = 0
    for name, (member, dtype) in storages.items():
        code, size = BYTES[dtype]
        count = archive.getinfo(member).file_size // size
        header[name] = {"dtype": code, "shape": [count], "data_offsets": [position, position + count * size]}
        position += count * size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for name, (member, _) in storages.items():
        start, end = header[name]["data_offsets"]
        left = end - start
        with archive.open(member) as source:
            while left and (block := source.read(min(left, 1 << 20))):
                stream.write(block)
                left -= len(block)
            source.read(1 << 20)  # to the end, so that the checksum is verified
        if left:
            raise ContentsError(f"{member} is shorter than its archive declares; it was cut short")


def _checked(key: str, record: TensorRecord) -> tuple[Storage, str]:
    if record.unreadable or record.storage is None:
        raise ContentsError(f"{key} is {record.unreadable or 'without data'}; only dense, plain tensors are read")
    if record.dtype not in BYTES:
        raise ContentsError(f"{key} has the dtype {record.dtype}; known: {', '.join(BYTES)}")
    return record.storage, record.dtype


def _check_view(key: str, record: TensorRecord, count: int) -> None:
    numbers = (record.offset, *record.shape, *record.stride)
    if len(record.shape) != len(record.stride) or min(numbers) < 0 or max(numbers) >= 1 << 62 or len(numbers) > 64:
        raise ContentsError(f"{key} has shape {record.shape[:8]} and stride {record.stride[:8]}, which do not fit")
    reach = record.offset + sum((n - 1) * step for n, step in zip(record.shape, record.stride, strict=True)) + 1
    if math.prod(record.shape) and reach > count:
        raise ContentsError(f"{key} with shape {record.shape} reaches element {reach:,} of {count:,}; it is corrupt")


def _exported(entry: dict[str, Any]) -> TensorRecord:
    path, meta = entry["path_name"], entry["tensor_meta"]
    if not isinstance(path, str) or "/" in path:
        raise ValueError(path)
    sizes, strides = ([int(item["as_int"]) for item in meta[name]] for name in ("sizes", "strides"))
    dtype = _EXPORT_DTYPES.get(meta["dtype"], f"number {meta['dtype']}")
    return TensorRecord(
        Storage(path, dtype), dtype, int(meta["storage_offset"]["as_int"]), tuple(sizes), tuple(strides)
    )


def _notes_on_export(archive: zipfile.ZipFile) -> list[tuple[str, str]]:
    notes = []
    for name in archive.namelist():
        leaf = name.rpartition("/")[2]
        if leaf.startswith(("custom_obj", "opaque_obj")):
            notes.append(("artifact-pickled-constant", f"{name} is a pickled object; torch.export would unpickle it"))
        elif "/aotinductor/" in name or leaf.endswith((".so", ".dll", ".dylib", ".pyd")):
            notes.append(("artifact-native-code", f"{name} is compiled code; torch would load it"))
        elif leaf.endswith("_constants_config.json"):
            entries = _json(archive, name).get("config")
            pickled = [k for k, v in (entries or {}).items() if isinstance(v, dict) and v.get("use_pickle")]
            if pickled:
                notes.append(("artifact-pickled-constant", f"{name}: {', '.join(pickled[:5])} are pickled"))
        elif "models/" in name and leaf.endswith(".json"):
            _check_expressions(_json(archive, name), name)
    return notes


def _check_expressions(program: Any, name: str) -> None:
    # torch.export.load gives these strings to sympy.sympify, which evaluates them as Python.
    waiting = [program]
    while waiting:
        value = waiting.pop()
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        text = value.get("expr_str") if isinstance(value, dict) else None
        if isinstance(text, str) and _CODE.search(text):
            raise ContentsError(
                f"{name} has {text[:100]!r} where a symbolic size belongs: torch.export would evaluate it", hostile=True
            )


def _json(archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    try:
        values = json.loads(read_member(archive, name, max_bytes=MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise ContentsError(f"{name} is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise ContentsError(f"{name} is not a JSON object")
    return values
