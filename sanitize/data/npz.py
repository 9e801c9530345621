"""Images and labels in one NumPy archive; arrays that do not fit the room are unpacked into a file of it."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from sanitize.data.decoding import Decoded, Decoder, resize_images
from sanitize.data.room import Room
from sanitize.data.rows import Rows
from sanitize.errors import DataError

# An archive can announce far more than its size on disk; what is announced must fit in memory, or on the disk.
MAX_BYTES = 16 * 2**30
CHUNK = 2**20  # bytes that are unpacked at a time
BLOCK = 64  # images that are copied, and resized, at a time

Array = np.ndarray[Any, np.dtype[Any]]


def read_npz(path: Path, *, rows: Rows, decoder: Decoder) -> tuple[Decoded, Tensor | None, tuple[str, ...] | None]:
    """Read an archive with the arrays `images` (or `x`), and where there are `labels` (or `y`) and `class_names`.

    Args:
        path: The archive, compressed or not.
        rows: Which images are wanted.
        decoder: Size, room, and what the user called the data.

    Returns:
        Images, labels of the rows, class names.

    Raises:
        DataError: It is no such archive, holds pickled objects, or announces more than 16 GiB.
    """
    source = decoder.source
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
            if size > MAX_BYTES:
                raise DataError(f"{source} unpacks to {size / 2**30:.0f} GiB, more than fits. Use Parquet.")
            pixels = _array(archive, ("images", "x"), decoder.room)
            labels = _array(archive, ("labels", "y"), decoder.room)
            names = _array(archive, ("class_names",), decoder.room)
    except DataError:
        raise
    except Exception as error:  # damage surfaces as errors of zipfile, zlib, numpy's header parser, ...
        raise DataError(
            f"{source} is not a readable .npz of plain arrays ({error}); pickled objects are never loaded. "
            "Write it with numpy.savez(file, images=..., labels=...)."
        ) from error
    if pixels is None:
        raise DataError(f"{source} has no array `images` (or `x`): uint8, (N, H, W, 3) or (N, 3, H, W).")
    images = _channels_first(pixels, source)
    indices = rows.indices(len(images), source)
    if labels is not None:
        if labels.dtype.kind not in "iu" or labels.shape not in ((len(images),), (len(images), 1)):
            raise DataError(
                f"labels of {source} must be integers, one for each of the {len(images)} images; "
                f"got {labels.dtype} {labels.shape}."
            )
        labels = labels.reshape(-1)[indices].astype(np.int64)
    return (
        Decoded(_pixels(images, indices, decoder)),
        None if labels is None else torch.from_numpy(labels),
        None if names is None else tuple(map(str, names.reshape(-1))),
    )


def _array(archive: zipfile.ZipFile, names: tuple[str, ...], room: Room | None) -> Array | None:
    """The first of these arrays that there is."""
    members = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
    entry = next((members[name] for name in names if name in members), None)
    if entry is None:
        return None
    with archive.open(entry) as packed:
        if room is None or entry.file_size <= room.limit:
            return npy.read_array(packed, allow_pickle=False)
        unpacked = room.empty((entry.file_size,), torch.uint8).numpy()
        start = 0
        while part := packed.read(CHUNK):
            unpacked[start : start + len(part)] = np.frombuffer(part, np.uint8)
            start += len(part)
    return _in_place(unpacked)


def _in_place(unpacked: Array) -> Array:
    """The array that the bytes (B,) of an .npy file hold, without a copy of them."""
    head = io.BytesIO(unpacked[: 2**16].tobytes())
    version = npy.read_magic(head)
    shape, by_columns, kind = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(head)
    if kind.hasobject:
        raise ValueError("an array of objects")
    values = np.ndarray(shape, kind, unpacked.data, head.tell(), order="F" if by_columns else "C")
    return values


def _pixels(images: Array, indices: Array, decoder: Decoder) -> Tensor:
    """The wanted images, block by block into the decoder's room."""
    output: Tensor | None = None
    for start in range(0, len(indices), BLOCK):
        block = torch.from_numpy(np.ascontiguousarray(images[indices[start : start + BLOCK]]))
        block = resize_images(block, decoder.image_size, decoder.source)
        if output is None:
            output = decoder.space(len(indices), block[0])
        output[start : start + len(block)] = block
    assert output is not None  # rows.indices gives one at least
    return output


def _channels_first(pixels: Array, source: str) -> Array:
    if pixels.dtype != np.uint8:
        raise DataError(
            f"images of {source} are {pixels.dtype}; uint8 from 0 to 255 is expected, as the range of other types "
            "cannot be told. Convert them first."
        )
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.ndim != 4 or 0 in pixels.shape[1:]:
        raise DataError(f"images of {source} must be (N, H, W, 3) or (N, 3, H, W), got {pixels.shape}.")
    first, last = pixels.shape[1] in (1, 3), pixels.shape[3] in (1, 3)
    if first == last:
        what = "either axis could be the channels" if first else "no axis has 3 channels"
        raise DataError(f"images of {source} are {pixels.shape}: {what}. Store (N, H, W, 3).")
    if last:
        pixels = pixels.transpose(0, 3, 1, 2)
    return np.broadcast_to(pixels, (len(pixels), 3, *pixels.shape[2:]))
