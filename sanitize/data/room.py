"""Tensors that may not fit in memory: up to a limit they are in it, beyond it in a file that is mapped."""

from __future__ import annotations

import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sanitize.errors import DataError

MEMORY = 4.0
"""GiB that the images of a set may take by default."""


@dataclass(frozen=True)
class Room:
    """How much memory one tensor may take, and where it goes if it takes more.

    The pages of a mapped file are the system's to drop, so that they do not count as memory of the process.

    Args:
        limit: Bytes.
        folder: Of the files; whoever owns it removes them.

    Example:
        >>> room = Room(1000, Path(tempfile.mkdtemp()))
        >>> room.empty((10, 3), torch.uint8).shape, room.empty((1001,), torch.uint8).shape
        (torch.Size([10, 3]), torch.Size([1001]))
        >>> [file.stat().st_size for file in room.folder.iterdir()]
        [1001]
    """

    limit: int
    folder: Path

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor to be filled.

        Raises:
            DataError: There is no space for its file.
        """
        count = math.prod(shape)
        size = count * dtype.itemsize
        if size <= self.limit:
            return torch.empty(shape, dtype=dtype)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self.folder, suffix=".tensor")
            try:
                # Reserved now: a disk that is full later would end the process at a write to the map.
                (os.posix_fallocate if hasattr(os, "posix_fallocate") else _extend)(descriptor, 0, size)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise DataError(
                f"{size / 2**30:.1f} GiB of images or features go into a file, and {self.folder} does not take them "
                f"({error.strerror}). Choose another --workdir, or give more --memory."
            ) from error
        return torch.from_file(name, shared=True, size=count, dtype=dtype).view(shape)


def _extend(descriptor: int, _: int, size: int) -> None:
    os.truncate(descriptor, size)
