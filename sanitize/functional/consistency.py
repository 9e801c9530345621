"""Feature consistency under transformations (FCT): the random transformations, and how far features move by them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Transformation = Literal["rotate", "shift", "flip", "crop", "blur", "erase"]

SHIFT = 0.2
CROP_PADDING = 4
BLUR_KERNEL = 15
BLUR_SIGMA = (0.1, 2.0)
ERASED_AREA = (0.2, 0.3)
ERASED_RATIO = (0.5, 1.0)

Drawn = list[list[Tensor]]
"""For each transformation what is random in it: numbers in [0, 1)."""


def feature_consistency(features: Tensor, transformed: Tensor) -> Tensor:
    """How far features move (FCT; Chen, Wu, Wang, NeurIPS 2022): the mean squared difference of matching rows.

    Args:
        features: (N, D) of images.
        transformed: (N, D) of the same images, transformed.

    Returns:
        (N,), 0 or more.

    Example:
        >>> feature_consistency(torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 0.0]]))
        tensor([2.])
    """
    return (features - transformed).square().mean(dim=1)


def transform(images: Tensor, names: tuple[Transformation, ...], generator: torch.Generator) -> Tensor:
    """Transform each image by its own random draw, one transformation after the other.

    ``rotate``: by -180 to 180 degrees; ``shift``: by up to 20 % of width and height; ``flip``: left and right, always;
    ``crop``: pad by 4 pixels and crop; ``blur``: Gaussian, 15 pixels, sigma 0.1 to 2; ``erase``: a rectangle of 20 to
    30 % of the area becomes noise. What comes in from outside is black, resampling is nearest.

    Args:
        images: (N, 3, H, W), RGB in [0, 1]; not changed.
        names: Of the transformations.
        generator: Of all randomness, on any device.

    Returns:
        (N, 3, H, W) in [0, 1].

    Example:
        >>> transform(torch.ones(2, 3, 8, 8), ("rotate", "shift"), torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 8, 8])
    """
    return transformed(images, names, draw(names, images.shape, generator))


def draw(names: tuple[Transformation, ...], shape: torch.Size, generator: torch.Generator) -> Drawn:
    """What is random in a `transform` of images (N, 3, H, W), which need not be at hand for that.

    Args:
        names: Of the transformations.
        shape: Of the images.
        generator: As of `transform`; gives the same numbers.

    Example:
        >>> images, generator = torch.rand(2, 3, 8, 8), torch.Generator()
        >>> drawn = draw(("shift",), images.shape, generator.manual_seed(0))
        >>> again = transform(images, ("shift",), generator.manual_seed(0))
        >>> torch.equal(transformed(images, ("shift",), drawn), again)
        True
    """
    device = generator.device
    drawn = []
    for name in names:
        sizes: list[tuple[int, ...]] = [(_NUMBERS[name], shape[0])]
        if name == "erase":
            sizes.append(tuple(shape))
        drawn.append([torch.rand(size, generator=generator, device=device) for size in sizes])
    return drawn


def transformed(images: Tensor, names: tuple[Transformation, ...], drawn: Drawn) -> Tensor:
    """Images after a `transform` whose random numbers are given.

    Args:
        images: (N, 3, H, W), RGB in [0, 1]; not changed.
        names: Of the transformations.
        drawn: From `draw`, for the same names and shape; on any device.
    """
    for name, numbers in zip(names, drawn, strict=True):
        images = _TRANSFORMATIONS[name](images, *(part.to(images.device) for part in numbers))
    return images


def _between(low: float, high: float, drawn: Tensor) -> Tensor:
    return low + (high - low) * drawn


def _rotate(images: Tensor, drawn: Tensor) -> Tensor:
    angle = _between(-math.pi, math.pi, drawn)[0]
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    ratio = images.shape[-2] / images.shape[-1]  # affine_grid's units are half widths and half heights
    matrix = torch.stack((cos, sin * ratio, zero, -sin / ratio, cos, zero), dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def _shift(images: Tensor, drawn: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    down, right = _between(-SHIFT, SHIFT, drawn)
    return _moved(images, (down * height).round().long(), (right * width).round().long())


def _crop(images: Tensor, drawn: Tensor) -> Tensor:
    down, right = _between(0, 2 * CROP_PADDING + 1, drawn).long() - CROP_PADDING
    return _moved(images, down, right)


def _moved(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Each image moved by its own number of pixels."""
    count, _, height, width = images.shape
    row = torch.arange(height, device=images.device) - down[:, None]
    column = torch.arange(width, device=images.device) - right[:, None]
    inside = ((row >= 0) & (row < height))[:, :, None] & ((column >= 0) & (column < width))[:, None, :]
    row, column = row.clamp(0, height - 1), column.clamp(0, width - 1)
    number = torch.arange(count, device=images.device)[:, None, None]
    moved = images[number, :, row[:, :, None], column[:, None, :]].permute(0, 3, 1, 2)
    return moved * inside[:, None].to(images.dtype)


def _flip(images: Tensor, _: Tensor) -> Tensor:
    return images.flip(-1)


def _blur(images: Tensor, drawn: Tensor) -> Tensor:
    count, channels, height, width = images.shape
    sigma = _between(*BLUR_SIGMA, drawn)[0]
    reach = BLUR_KERNEL // 2
    offset = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offset / sigma[:, None].to(images.dtype)).square())
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
    mode = "reflect" if reach < min(height, width) else "replicate"
    # One group a channel of an image, so that every image has its own kernel.
    padded = F.pad(images, [reach] * 4, mode=mode).reshape(1, count * channels, height + 2 * reach, width + 2 * reach)
    rows = F.conv2d(padded, kernel[:, None, :, None], groups=count * channels)
    return F.conv2d(rows, kernel[:, None, None, :], groups=count * channels).view_as(images)


def _erase(images: Tensor, drawn: Tensor, noise: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    area = height * width * (ERASED_AREA[0] + (ERASED_AREA[1] - ERASED_AREA[0]) * drawn[0])
    ratio = ERASED_RATIO[0] + (ERASED_RATIO[1] - ERASED_RATIO[0]) * drawn[1]
    rows, columns = (area * ratio).sqrt().round(), (area / ratio).sqrt().round().clamp(max=width)
    top = (drawn[2] * (height - rows + 1)).floor()[:, None]
    left = (drawn[3] * (width - columns + 1)).floor()[:, None]
    row, column = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    in_rows = (row >= top) & (row < top + rows[:, None])
    in_columns = (column >= left) & (column < left + columns[:, None])
    erased = (in_rows[:, :, None] & in_columns[:, None, :])[:, None]
    return torch.where(erased, noise.to(images), images)


_NUMBERS: dict[Transformation, int] = {"rotate": 1, "shift": 2, "flip": 0, "crop": 2, "blur": 1, "erase": 4}
"""That an image takes."""
_TRANSFORMATIONS: dict[Transformation, Callable[..., Tensor]] = {
    "rotate": _rotate,
    "shift": _shift,
    "flip": _flip,
    "crop": _crop,
    "blur": _blur,
    "erase": _erase,
}
