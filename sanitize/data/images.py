"""Images in memory: uint8, with labels where there are any, and a digest that says exactly which they are."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from sanitize.data.room import Room
from sanitize.data.unreadable import Unreadable
from sanitize.errors import DataError


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """A set of images of one size.

    Args:
        images: (N, 3, H, W) uint8, RGB.
        labels: (N,) int64 class indices, or None for unlabelled data.
        class_names: One name a class, or None.
        uri: Where it came from, as the user named it.
        suspected: (N,) bool, True where the user guesses that an image is poisoned, or None without a guess.
        unreadable: Pictures of the data that are not among the images.
        room: For what is computed of each image, where it may not fit in memory; None for no limit.
    """

    images: Tensor
    labels: Tensor | None = None
    class_names: tuple[str, ...] | None = None
    uri: str = ""
    suspected: Tensor | None = None
    unreadable: tuple[Unreadable, ...] = ()
    room: Room | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[1] != 3:
            raise DataError(
                f"images of {self.uri or 'this set'} must be uint8 (N, 3, H, W), "
                f"got {self.images.dtype} {tuple(self.images.shape)}."
            )
        if self.labels is not None and self.labels.shape != (len(self.images),):
            raise DataError(f"{self.uri or 'this set'} has {len(self.images)} images but {len(self.labels)} labels.")
        if self.suspected is not None and (
            self.suspected.dtype != torch.bool or self.suspected.shape != (len(self.images),)
        ):
            raise DataError(
                f"the suspected images of {self.uri or 'this set'} must be bool ({len(self.images)},), "
                f"got {self.suspected.dtype} {tuple(self.suspected.shape)}."
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""
        return self.images.shape[-1]

    @property
    def rows(self) -> Tensor:
        """(N,) int64, place of each image in the data, where unreadable ones are counted."""
        there = torch.ones(len(self.images) + len(self.unreadable), dtype=torch.bool)
        there[[picture.row for picture in self.unreadable]] = False
        return torch.nonzero(there).flatten()

    @cached_property
    def sha256(self) -> str:
        """Digest of shape, pixels, and labels and suspected images where there are any (hexadecimal)."""
        digest = hashlib.sha256(f"images {tuple(self.images.shape)} uint8\n".encode())
        digest.update(self.images.contiguous().numpy().data)
        if self.labels is not None:
            digest.update(b"labels int64\n")
            digest.update(self.labels.to(torch.int64).contiguous().numpy().tobytes())
        if self.suspected is not None:
            digest.update(b"suspected bool\n")
            digest.update(self.suspected.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def subset(self, indices: Tensor | slice) -> ImageSet:
        """The chosen images with their labels and the user's guess; their rows count anew.

        Args:
            indices: (M,) int64 or bool (N,), or a slice of rows.

        Raises:
            DataError: Nothing is chosen.
        """
        images = self.images[indices]
        if not len(images):
            raise DataError(f"a subset of {self.uri or 'this set'} ({len(self)} images) would be empty.")
        return replace(
            self,
            images=images,
            labels=None if self.labels is None else self.labels[indices],
            suspected=None if self.suspected is None else self.suspected[indices],
            unreadable=(),
        )

    def require_labels(self, purpose: str) -> Tensor:
        """The labels.

        Raises:
            DataError: There are none; the message names `purpose`.
        """
        if self.labels is None:
            raise DataError(f"{purpose} needs labels, and {self.uri or 'the data'} has none.")
        return self.labels

    def without_labels(self) -> ImageSet:
        """The same images, labels dropped: what a label-free defence gets to see."""
        return replace(self, labels=None)
