"""A trigger that bends the image: no pixel is painted, all are moved a little."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from sanitize.data.triggers import specs
from sanitize.data.triggers.base import Target, Trigger, check_pixels, check_target
from sanitize.errors import ConfigError


@dataclass(frozen=True, eq=False)
class WarpTrigger(Trigger):
    """WaNet's trigger (Nguyen and Tran, ICLR 2021): one smooth field of displacements for all images.

    A field of k x k control points, uniform in [-1, 1] and divided by its mean absolute value, is enlarged bicubically
    to the size of the image; each pixel is read ``strength * field / height`` further on (-1 and 1 are the centres of
    the outermost pixels, and nothing is read beyond them), bilinearly.

    Args:
        grid_size: k, control points a side.
        strength: s; about ``strength / 2`` pixels on average.
        seed: Of the control points.
        target: The class that the attacker wants, ``next``, or None.
        name: For reports.

    Raises:
        ConfigError: A value is out of range.

    Example:
        >>> image = torch.rand(1, 3, 32, 32)
        >>> bool((WarpTrigger().apply(image) != image).any())
        True
    """

    grid_size: int = 4
    strength: float = 0.5
    seed: int = 0
    target: Target = None
    name: str = "warp"

    def __post_init__(self) -> None:
        if isinstance(self.grid_size, bool) or not isinstance(self.grid_size, int) or not 2 <= self.grid_size <= 4096:
            raise ConfigError(f"{self.name}: grid_size must be from 2 to 4096, got {self.grid_size!r}.")
        number = isinstance(self.strength, int | float) and not isinstance(self.strength, bool)
        if not number or not math.isfinite(self.strength) or self.strength <= 0:
            raise ConfigError(f"{self.name}: strength must be a finite number above 0, got {self.strength!r}.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise ConfigError(f"{self.name}: seed must be an integer, 0 or more, got {self.seed!r}.")
        check_target(self.target, self.name)

    @property
    def sha256(self) -> str:
        """Digest of control points, strength and target; the name does not count."""
        values = f"warp {self.grid_size} {float(self.strength)} {self.seed} {self.target}"
        return hashlib.sha256(values.encode()).hexdigest()

    def apply(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Bend every image.

        Args:
            images: (N, 3, H, W), RGB in [0, 1]; not changed.
            generator: Not used: the field is fixed by `seed`.

        Returns:
            (N, 3, H, W) in [0, 1], on the device and of the type of `images`; differentiable in `images`.
        """
        check_pixels(images, self.name)
        places = self.places(images.shape[-2], images.shape[-1]).to(images.device)
        # Coordinates in half precision would be off by pixels.
        warped = functional.grid_sample(
            images.float(),
            places.expand(len(images), -1, -1, -1),
            mode="bilinear",
            padding_mode="border",
            align_corners=True,
        )
        return warped.clamp(0, 1).to(images.dtype)

    def places(self, height: int, width: int) -> Tensor:
        """Where each pixel is read, (1, height, width, 2) as (x, y) in [-1, 1], for `grid_sample`."""
        generator = torch.Generator().manual_seed(self.seed)
        points = 2 * torch.rand((1, 2, self.grid_size, self.grid_size), generator=generator) - 1
        points = points / points.abs().mean()
        field = functional.interpolate(points, size=(height, width), mode="bicubic", align_corners=True)
        row, column = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        identity = torch.stack((column, row), dim=2)[None]
        return (identity + self.strength * field.permute(0, 2, 3, 1) / height).clamp(-1, 1)

    def save(self, folder: Path) -> Path:
        """Write ``trigger.yaml``; exact."""
        return specs.write_values(
            folder,
            {
                "kind": "warp",
                "name": self.name,
                "grid_size": self.grid_size,
                "strength": float(self.strength),
                "seed": self.seed,
                "target": self.target,
            },
        )
