"""Patches: what is pasted on an image, where and how."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from sanitize.data.triggers import specs
from sanitize.data.triggers.base import Target, Trigger, check_pixels, check_target
from sanitize.errors import ConfigError
from sanitize.types import did_you_mean

Mode = Literal["replace", "add", "blend"]
Position = tuple[int, int] | Literal["random", "bottom-right"]


@dataclass(frozen=True, eq=False)
class PatchTrigger(Trigger):
    """A patch and how it is pasted.

    With ``m = alpha * mask``, the pixels under the patch become ``image * (1 - m) + patch * m`` (`replace` and `blend`:
    one formula, `blend` only requires an alpha below 1) or ``image + patch * m`` (`add`), clamped to [0, 1].

    Args:
        patch: (3, h, w), RGB in [0, 1]; in mode `add` in [-1, 1].
        mask: (1, h, w) in [0, 1], or None for all of the patch.
        mode: ``replace``, ``add`` or ``blend``.
        alpha: Opacity, in (0, 1].
        position: Top left corner as (row, column), ``bottom-right``, or ``random``: uniform over all places where the
            whole patch fits, drawn for each image.
        box: With position ``random``: the part of the image, from low to high on both axes, in [0, 1], that the whole
            patch lies inside; a box that is too small for it has it at its low point. None for all of the image.
        target: The class that the attacker wants, ``next``, or None.
        name: For reports.

    Raises:
        ConfigError: A value is out of range or shapes do not fit each other.

    Example:
        >>> trigger = PatchTrigger(torch.ones(3, 4, 4), position="bottom-right")
        >>> trigger.apply(torch.zeros(2, 3, 32, 32)).sum().item()
        96.0
    """

    patch: Tensor
    mask: Tensor | None = None
    mode: Mode = "replace"
    alpha: float = 1.0
    position: Position = "random"
    box: tuple[float, float] | None = None
    target: Target = None
    name: str = "trigger"

    def __post_init__(self) -> None:
        low = -1.0 if self.mode == "add" else 0.0
        if self.patch.ndim != 3 or self.patch.shape[0] != 3 or not self.patch.numel():
            raise ConfigError(f"{self.name}: a patch must be (3, h, w), got {tuple(self.patch.shape)}.")
        if not bool(((self.patch >= low) & (self.patch <= 1)).all()):
            raise ConfigError(f"{self.name}: values of the patch must be in [{low:g}, 1].")
        if self.mask is not None and self.mask.shape != (1, *self.patch.shape[1:]):
            raise ConfigError(
                f"{self.name}: the mask must have the size of the patch, (1, {self.patch.shape[1]}, "
                f"{self.patch.shape[2]}), got {tuple(self.mask.shape)}."
            )
        if self.mask is not None and not bool(((self.mask >= 0) & (self.mask <= 1)).all()):
            raise ConfigError(f"{self.name}: values of the mask must be in [0, 1].")
        if self.mode not in get_args(Mode):
            raise ConfigError(
                f"{self.name}: unknown mode {self.mode!r}. {did_you_mean(str(self.mode), get_args(Mode))}"
            )
        if isinstance(self.alpha, bool) or not isinstance(self.alpha, int | float) or not 0 < self.alpha <= 1:
            raise ConfigError(f"{self.name}: alpha must be above 0 and at most 1, got {self.alpha!r}.")
        if self.mode == "blend" and self.alpha == 1 and self.mask is None:
            raise ConfigError(f"{self.name}: mode blend needs an alpha below 1 (or a mask); alpha 1 is mode replace.")
        if not _is_position(self.position):
            raise ConfigError(
                f"{self.name}: position must be [row, column], random or bottom-right, got {self.position!r}."
            )
        if self.box is not None and (self.position != "random" or not _is_box(self.box)):
            raise ConfigError(
                f"{self.name}: box must be [low, high] with 0 <= low < high <= 1, and goes with position random; "
                f"got {self.box!r} with position {self.position!r}."
            )
        check_target(self.target, self.name)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the patch in pixels."""
        return self.patch.shape[1], self.patch.shape[2]

    @property
    def sha256(self) -> str:
        """Digest of what is pasted, how and where, and of the target; the name does not count."""
        digest = hashlib.sha256(f"{self.size} {self.mode} {self.alpha} {self.position} {self.target}".encode())
        if self.box is not None:
            digest.update(f"box {float(self.box[0])} {float(self.box[1])}".encode())
        for tensor in (self.patch, self.mask):
            digest.update(b"|" if tensor is None else tensor.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def apply(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Paste the trigger on every image.

        Args:
            images: (N, 3, H, W), RGB in [0, 1]; not changed.
            generator: Of random positions; None means a fresh one with seed 0, so that a call repeats itself.

        Returns:
            (N, 3, H, W) in [0, 1], on the device and of the type of `images`; differentiable in `images`.

        Raises:
            ConfigError: The trigger does not fit on images of this size.
        """
        check_pixels(images, self.name)
        top, left = self.corners(len(images), images.shape[-2], images.shape[-1], generator)
        top, left = top.to(images.device), left.to(images.device)
        height, width = self.size
        patch = self.patch.to(images)
        weight = patch.new_full((1, height, width), 1.0) if self.mask is None else self.mask.to(images)
        weight = weight * self.alpha
        number = torch.arange(len(images), device=images.device)[:, None, None]
        row = (top[:, None] + torch.arange(height, device=images.device))[:, :, None]
        column = (left[:, None] + torch.arange(width, device=images.device))[:, None, :]
        below = images[number, :, row, column]  # (N, h, w, 3): advanced indices around a slice move to the front
        patch, weight = patch.permute(1, 2, 0), weight.permute(1, 2, 0)
        pasted = below + patch * weight if self.mode == "add" else below * (1 - weight) + patch * weight
        output = images.clone()
        output[number, :, row, column] = pasted.clamp(0, 1)
        return output

    def corners(
        self, count: int, height: int, width: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Top rows and left columns of `count` pasted patches, (count,) int64 each, on the generator's device.

        Raises:
            ConfigError: The trigger does not fit on images of `height` x `width` pixels.
        """
        rows, columns = height - self.size[0], width - self.size[1]
        if rows < 0 or columns < 0:
            raise ConfigError(
                f"{self.name} is {self.size[0]}x{self.size[1]} px and does not fit on images of {height}x{width} px. "
                "Give it a smaller `size`."
            )
        if self.position == "random":
            generator = generator or torch.Generator().manual_seed(0)
            return (
                _random_places(count, height, self.size[0], self.box, generator),
                _random_places(count, width, self.size[1], self.box, generator),
            )
        row, column = (rows, columns) if self.position == "bottom-right" else self.position
        if row > rows or column > columns:
            raise ConfigError(
                f"{self.name} at position [{row}, {column}] leaves images of {height}x{width} px; "
                f"[{rows}, {columns}] is the last place for {self.size[0]}x{self.size[1]} px."
            )
        return torch.full((count,), row), torch.full((count,), column)

    def save(self, folder: Path) -> Path:
        """Write ``trigger.yaml`` with ``trigger.png`` and, where there is one, ``mask.png``.

        Values are rounded to 8 bit (an error of at most 1/510), which changes nothing for a trigger that came from a
        picture. A patch with negative values (mode `add`) is written as a `pattern` in the YAML instead, exactly.

        Args:
            folder: Created where missing.

        Returns:
            Path of ``trigger.yaml``; it is written last.
        """
        return specs.write_patch(
            folder,
            patch=self.patch.detach().float().cpu(),
            mask=None if self.mask is None else self.mask.detach().float().cpu(),
            values={
                "name": self.name,
                "mode": self.mode,
                "alpha": float(self.alpha),
                "position": list(self.position) if isinstance(self.position, tuple) else self.position,
                "box": None if self.box is None else [float(edge) for edge in self.box],
                "target": self.target,
            },
        )


def _random_places(
    count: int, side: int, size: int, box: tuple[float, float] | None, generator: torch.Generator
) -> Tensor:
    """(count,) places of a patch of `size` px along an axis of `side` px; edges are cut off as SSL-Backdoor does."""
    low, high = 0, side - size
    if box is not None:
        low = min(int(side * box[0]), high)
        high = max(low, min(int(side * box[1] - size), high))
    return torch.randint(low, high + 1, (count,), generator=generator, device=generator.device)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_position(value: object) -> bool:
    if isinstance(value, tuple):
        return len(value) == 2 and all(_is_integer(part) and part >= 0 for part in value)
    return value in ("random", "bottom-right")


def _is_box(value: object) -> bool:
    if not isinstance(value, tuple) or len(value) != 2:
        return False
    if any(isinstance(edge, bool) or not isinstance(edge, int | float) for edge in value):
        return False
    return bool(0 <= value[0] < value[1] <= 1)
