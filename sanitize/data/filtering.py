"""A data set without some of its images; those that stay keep their pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from sanitize.data.images import ImageSet
from sanitize.data.parquet import BATCH, SUFFIXES, parquet_files
from sanitize.data.room import Room
from sanitize.data.rows import Rows
from sanitize.data.sources import load_images
from sanitize.data.writing import write_parquet


class Original:
    """A data set as it lies on disk, whatever size its images are looked at.

    Rows of Parquet are copied as they are: the encoded bytes and all columns that the files agree on. Images of every
    other form are written as PNG, in their own size.

    Args:
        source: DATA.
        path: Where an MLflow URI was copied to; None for other sources.
        skip_unreadable: See `load_images`.
        room: See `load_images`.

    Raises:
        DataError: The images are not in Parquet, and not square and of one size.
    """

    def __init__(
        self, source: str, path: Path | None = None, *, skip_unreadable: bool = False, room: Room | None = None
    ) -> None:
        name, rows = Rows.split(source)
        self.source = source
        self._rows = rows
        self._files = _parquet(path or Path(name).expanduser())
        self._images: ImageSet | None = None
        if not self._files:
            self._images = load_images(
                source, resolve=None if path is None else lambda _: path, skip_unreadable=skip_unreadable, room=room
            )

    def write(self, keep: Tensor, file: Path) -> Path:
        """Write the images that stay as one Parquet file.

        Args:
            keep: (N,) bool, of the rows that the source selects, the unreadable ones counted; of these none.
            file: The file; its folder is created where missing.

        Returns:
            `file`.

        Raises:
            DataError: The file cannot be written.
        """
        if self._images is not None:
            return write_parquet(self._images, file, keep[self._images.rows])
        tables = [pq.ParquetFile(path) for path in self._files]
        rows = self._rows.indices(sum(table.metadata.num_rows for table in tables), self.source)[keep.numpy()]
        file.parent.mkdir(parents=True, exist_ok=True)
        _copy_rows(tables, rows, file)
        return file


def _parquet(path: Path) -> list[Path]:
    """The Parquet files behind a path; empty for other forms."""
    if path.is_dir():
        return parquet_files(path)
    if not path.is_file():
        return []
    with path.open("rb") as file:
        head = file.read(4)
    return [path] if path.suffix.lower() in SUFFIXES or head == b"PAR1" else []


def _copy_rows(tables: list[Any], rows: np.ndarray, file: Path) -> None:
    first = tables[0].schema_arrow
    shared = [field.name for field in first if all(_has(table.schema_arrow, field) for table in tables)]
    schema = pa.schema([first.field(name) for name in shared], metadata=first.metadata)
    offset = 0
    with pq.ParquetWriter(file, schema) as writer:
        for table in tables:
            for group in range(table.metadata.num_row_groups):
                size = table.metadata.row_group(group).num_rows
                low, high = np.searchsorted(rows, (offset, offset + size))
                if low < high:
                    _copy_group(table, group, shared, rows[low:high] - offset, writer)
                offset += size


def _copy_group(table: Any, group: int, columns: list[str], rows: np.ndarray, writer: Any) -> None:
    start = 0
    for batch in table.iter_batches(BATCH, row_groups=[group], columns=columns):
        low, high = np.searchsorted(rows, (start, start + batch.num_rows))
        if low < high:
            part = pa.Table.from_batches([batch]).take(pa.array(rows[low:high] - start))
            writer.write_table(part.select(columns))
        start += batch.num_rows


def _has(schema: Any, field: Any) -> bool:
    return field.name in schema.names and bool(schema.field(field.name).type == field.type)
