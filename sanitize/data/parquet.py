"""Images in Parquet, as Hugging Face writes them: `image` struct<bytes, path>, optional integer `label`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from sanitize.data.decoding import Decoded, Decoder
from sanitize.data.rows import Rows
from sanitize.errors import DataError

SUFFIXES = frozenset({".parquet", ".pq"})
MAX_ROWS = 1 << 28
"""More than any file of pictures has; a footer can announce any number."""
BATCH = 256
BATCH_BYTES = 1 << 30
"""Of a column whose values are stored once and referred to, no more is unpacked at a time."""


@dataclass(frozen=True)
class _Table:
    """One opened file, and which of its columns count."""

    path: Path
    file: Any
    image: str
    label: str | None
    class_names: tuple[str, ...] | None


def read_parquet(
    files: list[Path], *, rows: Rows, decoder: Decoder
) -> tuple[Decoded, Tensor | None, tuple[str, ...] | None]:
    """Read the chosen rows of one or several Parquet files; row groups without any of them are not read.

    Args:
        files: The files, in row order.
        rows: Which rows of their concatenation.
        decoder: Of the images.

    Returns:
        Images; labels (N,) int64 of all rows, also unreadable ones, or None; class names or None.

    Raises:
        DataError: A file or image is corrupt, columns are missing, or labels are unfit.
    """
    source = decoder.source
    tables = [_open(path) for path in files]
    first = tables[0]
    for table in tables[1:]:
        if (table.image, table.label, table.class_names) != (first.image, first.label, first.class_names):
            raise DataError(
                f"{first.path.name} and {table.path.name} in {source} have different columns or class names, "
                "so they are not parts of one data set. Name one of the files."
            )
    count = sum(table.file.metadata.num_rows for table in tables)
    if count > MAX_ROWS or any(_rows_of_groups(table) != table.file.metadata.num_rows for table in tables):
        raise DataError(f"{source} announces {count:,} rows, which its files do not hold. Fetch it again.")
    indices = rows.indices(count, source)
    labels: list[Any] = []
    images = decoder.decode(_pictures(tables, indices, labels), len(indices))
    if first.label is None:
        return images, None, None
    return images, torch.from_numpy(np.concatenate(labels)), first.class_names


def _open(path: Path) -> _Table:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} is not a readable Parquet file ({_line(error)}). Fetch it again.") from error
    schema = file.schema_arrow
    if len(set(schema.names)) < len(schema.names):
        raise DataError(f"{path} has several columns of the same name: {', '.join(schema.names[:8])}.")
    features = _features(schema.metadata)
    image = _image_column(schema)
    if image is None:
        raise DataError(
            f"{path} has no image column: one of type struct<bytes: binary, path: string>, named `image`, is expected. "
            f"Its columns: {', '.join(schema.names)}."
        )
    label = _label_column(schema, features, path)
    names = features.get(label, {}).get("names") if label else None
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        names = None
    return _Table(path, file, image, label, tuple(names) if names else None)


def _features(metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    """Column -> description from the `huggingface` schema metadata; empty where there is none or it is odd."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return {k: v for k, v in features.items() if isinstance(v, dict)} if isinstance(features, dict) else {}


def _image_column(schema: Any) -> str | None:
    def is_image(name: str) -> bool:
        kind = schema.field(name).type
        return bool(pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)

    candidates = [name for name in schema.names if is_image(name)]
    if "image" in candidates:
        return "image"
    return candidates[0] if len(candidates) == 1 else None


def _label_column(schema: Any, features: dict[str, Any], path: Path) -> str | None:
    if "label" in schema.names:
        return "label"
    classes = [name for name in schema.names if features.get(name, {}).get("_type") == "ClassLabel"]
    if len(classes) > 1:
        raise DataError(f"{path} has several label columns ({', '.join(classes)}): name the one that counts `label`.")
    return classes[0] if classes else None


def _pictures(tables: list[_Table], indices: np.ndarray, labels: list[Any]) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of the chosen rows; their labels are appended to `labels` on the way."""
    offset = 0
    for table in tables:
        start_of_file = offset
        for group in range(table.file.metadata.num_row_groups):
            size = table.file.metadata.row_group(group).num_rows
            low, high = np.searchsorted(indices, (offset, offset + size))
            if low < high:
                chosen = indices[low:high] - offset
                for rows, payloads, found in _read_group(table, group, chosen, offset - start_of_file):
                    labels.append(found)
                    for row, payload in zip(rows, payloads, strict=True):
                        name = f"row {offset - start_of_file + row}"
                        # An external path is never followed: whoever wrote the file would choose what is read here.
                        yield (name if len(tables) == 1 else f"{table.path.name} {name}", payload or b"")
            offset += size


def _read_group(
    table: _Table, group: int, chosen: np.ndarray, first_row: int
) -> Iterator[tuple[np.ndarray, list[bytes | None], Any]]:
    """The chosen rows of a row group, batch by batch: row numbers in the group, image bytes, labels."""
    columns = [f"{table.image}.bytes"] + ([table.label] if table.label else [])
    start = 0
    try:
        for batch in table.file.iter_batches(_batch_size(table, group), row_groups=[group], columns=columns):
            low, high = np.searchsorted(chosen, (start, start + batch.num_rows))
            if low < high:
                rows = chosen[low:high]
                yield rows, *_contents(table, pa.Table.from_batches([batch]).take(pa.array(rows - start)))
            start += batch.num_rows
            if start > chosen[-1]:
                return
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise DataError(
            f"{table.path} is damaged in row group {group} (rows from {first_row}): {_line(error)}. Fetch it again."
        ) from error


def _batch_size(table: _Table, group: int) -> int:
    """Rows to unpack at once: a value that is stored once may be referred to by every row."""
    # Of the group, since asking for one column's size ends the process when that part of the footer is damaged.
    size = table.file.metadata.row_group(group).total_byte_size
    return int(max(1, min(BATCH, BATCH_BYTES // max(1, size))))


def _rows_of_groups(table: _Table) -> int:
    meta = table.file.metadata
    return sum(int(meta.row_group(group).num_rows) for group in range(meta.num_row_groups))


def _contents(table: _Table, part: Any) -> tuple[list[bytes | None], Any]:
    payloads = part.column(table.image).combine_chunks()
    payloads = (payloads.field("bytes") if pa.types.is_struct(payloads.type) else payloads).to_pylist()
    if payloads and not isinstance(next((item for item in payloads if item is not None), b""), bytes):
        raise DataError(f"column {table.image}.bytes of {table.path} does not hold binary data.")
    found = part.column(table.label).combine_chunks() if table.label else None
    if found is not None:
        if not pa.types.is_integer(found.type) or found.null_count:
            raise DataError(
                f"column {table.label} of {table.path} must hold an integer class index in every row, "
                f"got {found.type} with {found.null_count} empty."
            )
        found = found.to_numpy(zero_copy_only=False).astype(np.int64)
    return payloads, found


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files of a folder, at any depth, by name; empty when there are none.

    Raises:
        DataError: They are several splits of one data set.
    """
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    )
    splits = {match[0] for path in files if (match := re.match(r"train|test|val", path.name))}
    if len(splits) > 1:
        raise DataError(
            f"{folder} holds several splits ({', '.join(sorted(splits))}) that would be mixed. Name one of the files: "
            f"{', '.join(path.name for path in files[:6])}."
        )
    return files


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
