"""A trigger in the frequency domain: two coefficients of the colour channels are raised."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sanitize.data.triggers import specs
from sanitize.data.triggers.base import Target, Trigger, check_pixels, check_target
from sanitize.errors import ConfigError

RGB_TO_YUV = ((0.299, 0.587, 0.114), (-0.147, -0.289, 0.436), (0.615, -0.515, -0.1))
"""BT.601 colours, rounded as CTRL (and kornia) have them; back by the exact inverse."""


@dataclass(frozen=True, eq=False)
class FrequencyTrigger(Trigger):
    """CTRL's trigger (Li et al., ICCV 2023): nearly invisible, the same for each image.

    The image, times 255, goes to YUV, and each window of it through an orthonormal DCT-II. A magnitude is added to two
    coefficients of U and of V, one in the middle (w/2 - 1 on both axes) and the highest (w - 1), and all goes back. As
    every step is linear, that is the same as adding one picture, which is how it is computed here.

    Args:
        magnitude: What is added to a coefficient, for pixels from 0 to 255.
        window: Side of the windows in pixels, even; None for one window of the size of the image.
        target: The class that the attacker wants, ``next``, or None.
        name: For reports.

    Raises:
        ConfigError: A value is out of range.

    Example:
        >>> trigger = FrequencyTrigger(magnitude=100)
        >>> changed = trigger.apply(torch.full((1, 3, 32, 32), 0.5)) - 0.5
        >>> round(float(changed.abs().max()) * 255)
        22
    """

    magnitude: float = 100.0
    window: int | None = None
    target: Target = None
    name: str = "frequency"

    def __post_init__(self) -> None:
        number = isinstance(self.magnitude, int | float) and not isinstance(self.magnitude, bool)
        if not number or not math.isfinite(self.magnitude) or self.magnitude == 0:
            raise ConfigError(f"{self.name}: magnitude must be a finite number other than 0, got {self.magnitude!r}.")
        whole = isinstance(self.window, int) and not isinstance(self.window, bool)
        if self.window is not None and (not whole or self.window < 2 or self.window % 2):
            raise ConfigError(f"{self.name}: window must be an even number of pixels, got {self.window!r}.")
        check_target(self.target, self.name)

    @property
    def sha256(self) -> str:
        """Digest of magnitude, window and target; the name does not count."""
        return hashlib.sha256(f"frequency {float(self.magnitude)} {self.window} {self.target}".encode()).hexdigest()

    def apply(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Put the trigger on every image.

        Args:
            images: (N, 3, H, W), RGB in [0, 1]; not changed.
            generator: Not used: nothing is random.

        Returns:
            (N, 3, H, W) in [0, 1], on the device and of the type of `images`; differentiable in `images`.

        Raises:
            ConfigError: Sides of the images are odd, or no multiples of the window.
        """
        check_pixels(images, self.name)
        picture = self.picture(images.shape[-2], images.shape[-1]).to(images)
        return torch.clamp(images + picture, 0, 1)

    def picture(self, height: int, width: int) -> Tensor:
        """What is added to an image, (3, height, width) float32, for pixels in [0, 1].

        Raises:
            ConfigError: Sides of the images are odd, or no multiples of the window.
        """
        rows, columns = self.window or height, self.window or width
        if height % rows or width % columns or rows % 2 or columns % 2:
            raise ConfigError(
                f"{self.name} with window {self.window or 'as large as the image'} does not fit on images of "
                f"{height}x{width} px: their sides must be even, and multiples of the window."
            )
        wave = torch.outer(_cosine(rows // 2 - 1, rows), _cosine(columns // 2 - 1, columns))
        wave = wave + torch.outer(_cosine(rows - 1, rows), _cosine(columns - 1, columns))
        back = torch.linalg.inv(torch.tensor(RGB_TO_YUV, dtype=torch.float64))
        colour = back[:, 1] + back[:, 2]  # what one more unit of both U and V is in RGB
        tile: Tensor = self.magnitude / 255 * colour[:, None, None] * wave
        return tile.repeat(1, height // rows, width // columns).to(torch.float32)

    def save(self, folder: Path) -> Path:
        """Write ``trigger.yaml``; exact."""
        return specs.write_values(
            folder,
            {
                "kind": "frequency",
                "name": self.name,
                "magnitude": float(self.magnitude),
                "window": self.window,
                "target": self.target,
            },
        )


def _cosine(frequency: int, size: int) -> Tensor:
    """One row of the orthonormal DCT-II matrix, (size,) float64."""
    angles = math.pi / size * (torch.arange(size, dtype=torch.float64) + 0.5) * frequency
    row: Tensor = torch.cos(angles) * math.sqrt((1 if frequency == 0 else 2) / size)
    return row
