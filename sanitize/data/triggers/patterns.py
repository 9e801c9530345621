"""Pictures that several attacks paste: for `PatchTrigger(patch=...)`."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from sanitize.errors import ConfigError

_COLOURS = 4  # a side


def htba_patch(size: int, generator: torch.Generator) -> Tensor:
    """A smooth random patch, as of Hidden Trigger Backdoor Attacks (Saha et al., AAAI 2020).

    4x4 random colours, enlarged bilinearly and rounded to 8 bit, so that a picture file holds it exactly.

    Args:
        size: Height and width in pixels, 1 or more.
        generator: Of the colours.

    Returns:
        (3, size, size) in [0, 1].

    Example:
        >>> htba_patch(8, torch.Generator().manual_seed(0)).shape
        torch.Size([3, 8, 8])
    """
    if size < 1:
        raise ConfigError(f"a patch of {size} px cannot be pasted; give 1 px or more.")
    colours = torch.rand((1, 3, _COLOURS, _COLOURS), generator=generator)
    enlarged = functional.interpolate(colours, size=(size, size), mode="bilinear", align_corners=False)
    return (enlarged[0] * 255).round() / 255


def sinusoid(image_size: int, amplitude: float, frequency: float) -> Tensor:
    """Vertical stripes ``amplitude * sin(2 pi frequency j / image_size)`` of column j, to be added: SIG's trigger.

    Barni, Kallas, Tondi; ICIP 2019.

    Args:
        image_size: Height and width in pixels.
        amplitude: For pixels in [0, 1], in (0, 1]; the paper's 20 to 60 are of 255.
        frequency: Periods across the image.

    Returns:
        (3, image_size, image_size) in [-amplitude, amplitude]; for `PatchTrigger` in mode ``add``.

    Raises:
        ConfigError: The amplitude is out of range.

    Example:
        >>> round(float(sinusoid(32, 40 / 255, 6).max()) * 255)
        40
    """
    if not 0 < amplitude <= 1:
        raise ConfigError(f"amplitude {amplitude} must be above 0 and at most 1; divide grey levels by 255.")
    wave = amplitude * torch.sin(2 * math.pi * frequency / image_size * torch.arange(image_size, dtype=torch.float64))
    return wave.float().expand(3, image_size, image_size).clone()
