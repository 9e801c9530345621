"""Images out: Parquet as Hugging Face writes it, so that `load_images` and the `datasets` library read it."""

from __future__ import annotations

import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from sanitize.data.images import ImageSet
from sanitize.errors import DataError

ROWS = 1000  # a row group: what is held in memory, encoded


def write_parquet(images: ImageSet, path: Path, keep: Tensor | None = None) -> Path:
    """Write a set as one Parquet file: `image` struct<bytes, path> with PNG bytes, `label` and class names where given.

    Pixels and labels are read back as they are. The file appears in one step: a reader sees the old one or the new one.

    Args:
        images: The set; what the user guesses about it (`suspected`) is not written.
        path: The file; its folder is created where missing.
        keep: (N,) bool, the images that are written; all when left out.

    Returns:
        `path`.

    Raises:
        DataError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> from sanitize.data import load_images
        >>> digits = load_images("digits#0:20")
        >>> file = write_parquet(digits, Path(tempfile.mkdtemp()) / "digits.parquet")
        >>> load_images(str(file)).sha256 == digits.sha256
        True
    """
    schema = _schema(images)
    rows = torch.arange(len(images)) if keep is None else torch.nonzero(keep).flatten()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                # PNG bytes are compressed already.
                with pq.ParquetWriter(file, schema, compression="none") as writer:
                    for part in torch.split(rows, ROWS):
                        writer.write_table(_rows(images, part, schema), row_group_size=ROWS)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            return temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}. Check the folder and the free space.") from error


def _schema(images: ImageSet) -> Any:
    picture = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
    fields = [pa.field("image", picture)]
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    if images.labels is not None:
        fields.append(pa.field("label", pa.int64()))
        features["label"] = (
            {"dtype": "int64", "_type": "Value"}
            if images.class_names is None
            else {"names": list(images.class_names), "_type": "ClassLabel"}
        )
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def _rows(images: ImageSet, rows: Tensor, schema: Any) -> Any:
    pixels = images.images[rows].permute(0, 2, 3, 1).contiguous().numpy()
    columns = [[{"bytes": _png(picture), "path": None} for picture in pixels]]
    if images.labels is not None:
        columns.append(images.labels[rows].tolist())
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def _png(pixels: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()
