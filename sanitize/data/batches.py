"""Batches without a data loader: the set lies on the device as uint8, and a batch is an index."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sanitize.data.images import ImageSet
from sanitize.errors import ConfigError


class DeviceImages:
    """An `ImageSet` on a device, kept as uint8: a quarter of the memory of floats.

    A set that would take more than half of a GPU's free memory stays where it is, and goes there batch by batch.

    Args:
        images: The set.
        device: Where batches are needed.

    Example:
        >>> from sanitize.data import load_images
        >>> data = DeviceImages(load_images("digits#:8"), "cpu")
        >>> [tuple(data.pixels(batch).shape) for batch in batches(len(data), 5, None)]
        [(5, 3, 32, 32), (3, 3, 32, 32)]
    """

    def __init__(self, images: ImageSet, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self._images = images.images.to(self.device) if _fits(images.images, self.device) else images.images
        self.labels: Tensor | None = None if images.labels is None else images.labels.to(self.device)
        """(N,) int64 on the device, or None."""

    def __len__(self) -> int:
        return len(self._images)

    def pixels(self, indices: Tensor | slice) -> Tensor:
        """Chosen images as RGB in [0, 1].

        Args:
            indices: (B,) int64 on any device, or a slice.

        Returns:
            (B, 3, H, W) float32 on the device.
        """
        if isinstance(indices, Tensor):
            indices = indices.to(self._images.device, non_blocking=True)
        return self._images[indices].to(self.device).to(torch.float32) / 255


def _fits(images: Tensor, device: torch.device) -> bool:
    return device.type != "cuda" or images.nbytes <= torch.cuda.mem_get_info(device)[0] // 2


def batches(
    count: int, batch_size: int, generator: torch.Generator | None = None, drop_last: bool = False
) -> Iterator[Tensor]:
    """Index batches that cover 0..count-1 once.

    Args:
        count: Number of samples.
        batch_size: Samples a batch; the last may be smaller.
        generator: CPU generator that shuffles; None keeps the order.
        drop_last: Leave an incomplete last batch out.

    Returns:
        An iterator of (B,) int64 tensors on the CPU. The order is drawn at this call, not at the first batch.

    Raises:
        ConfigError: `batch_size` is not positive, or larger than `count` where incomplete batches are left out.

    Example:
        >>> [batch.tolist() for batch in batches(5, 2)]
        [[0, 1], [2, 3], [4]]
    """
    if batch_size < 1:
        raise ConfigError(f"batch size {batch_size} is not a number of images; give 1 or more.")
    if drop_last and count < batch_size:
        raise ConfigError(f"{count} images do not fill one batch of {batch_size}. Lower the batch size.")
    order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
    stop = count - count % batch_size if drop_last else count
    return iter(torch.split(order[:stop], batch_size)) if stop else iter(())
