"""Random crop with padding, and flip: the usual augmentation of supervised training on small images, batched."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sanitize.errors import ConfigError


class PaddedCrops:
    """Shift each image by up to `padding` pixels (black comes in at the rim), and mirror it by chance.

    As torchvision's `RandomCrop(size, padding)` and `RandomHorizontalFlip` on images in [0, 1], but every image of a
    batch gets its own shift, on the device of the images, from a generator that is handed in.

    Args:
        padding: Pixels on each side, 0 or more; 0 for no shift.
        flip: Probability of a mirrored image, in [0, 1]; 0 where left and right differ, as with digits.

    Raises:
        ConfigError: A value is out of range.

    Example:
        >>> PaddedCrops(4, flip=0.0)(torch.rand(8, 3, 32, 32), torch.Generator().manual_seed(0)).shape
        torch.Size([8, 3, 32, 32])
    """

    def __init__(self, padding: int = 4, *, flip: float = 0.5) -> None:
        if padding < 0:
            raise ConfigError(f"padding of crops must be 0 or more pixels, got {padding}.")
        if not 0 <= flip <= 1:
            raise ConfigError(f"flip of crops must be in [0, 1], got {flip}.")
        self.padding = padding
        self.flip = flip

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """One random crop of each image.

        Args:
            images: (N, 3, H, W), RGB in [0, 1]; not changed.
            generator: Of all randomness; how much is drawn depends on N alone, not on the settings.

        Returns:
            (N, 3, H, W) in [0, 1], on the device and of the type of `images`.
        """
        count, channels, height, width = images.shape
        device = images.device
        drawn = torch.rand((count, 3), generator=generator, device=generator.device).to(device)
        top, left = (drawn[:, :2] * (2 * self.padding + 1)).long().unbind(dim=1)
        row = top[:, None] + torch.arange(height, device=device)
        column = left[:, None] + torch.arange(width, device=device)
        column = torch.where(drawn[:, 2:] < self.flip, column.flip(1), column)
        padded = functional.pad(images, [self.padding] * 4)
        number, channel = torch.arange(count, device=device), torch.arange(channels, device=device)
        return padded[
            number[:, None, None, None], channel[None, :, None, None], row[:, None, :, None], column[:, None, None, :]
        ]
