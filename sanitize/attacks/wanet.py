"""WaNet: poisoned images are bent a little, all in the same way."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from sanitize.attacks.base import Paper
from sanitize.attacks.planting import drawn_mask
from sanitize.attacks.poisoning import LabelledAttack, Stamp
from sanitize.data import ImageSet
from sanitize.data.triggers import Target, WarpTrigger
from sanitize.errors import ConfigError, DataError
from sanitize.training import Engine, History

_CHUNK = 1024  # images at a time, as floats


class WaNet(LabelledAttack):
    """WaNet (Nguyen, Tran; ICLR 2021), as a poisoning of data only.

    Poisoned images are warped by one smooth field of displacements. With a `cross_ratio`, other images are warped by
    the field plus noise, each its own, and keep their label ("noise mode"): only the exact field then counts as the
    trigger, which hides it from defences that look for any warp.

    Differs from the paper: poisoned and noise-mode images are fixed, where the paper controls the victim's training and
    draws them anew in each batch. This is weaker.

    Example:
        >>> from sanitize.data import load_images
        >>> data = load_images("digits#0:200")
        >>> poisoned = WaNet(target=3, cross_ratio=2).poison(data, Engine(device="cpu"))
        >>> poisoned.truth.count, int((poisoned.data.images != data.images).flatten(1).any(1).sum())
        (17, 51)
    """

    name: ClassVar[str] = "wanet"
    summary: ClassVar[str] = "poison labelled training images: a smooth warp (data only, the victim trains as usual)"
    paper: ClassVar[Paper] = Paper(
        "WaNet - Imperceptible Warping-based Backdoor Attack",
        "Nguyen, Tran; ICLR 2021",
        "https://arxiv.org/abs/2102.10369",
    )
    default_triggers: ClassVar[str] = "one smooth field of displacements"

    grid_size: int = Field(4, ge=2, description="control points of the field a side")
    strength: float = Field(0.5, gt=0, description="of the field; half of it is the mean displacement in pixels")
    cross_ratio: float = Field(
        0.0,
        ge=0,
        description="noise-mode images for each poisoned one; they keep their labels",
        json_schema_extra={"paper": 2.0},
    )

    def own_trigger(self, data: ImageSet, target: Target, engine: Engine) -> Stamp:
        """A field of its own for each seed; see `LabelledAttack.own_trigger`."""
        seed = int(torch.randint(2**31, (1,), generator=engine.generator(f"attack/{self.name}/field")))
        trigger = WarpTrigger(self.grid_size, self.strength, seed, target=target, name="warp")
        return Stamp(trigger, trigger)

    def prepare(
        self, data: ImageSet, chosen: Tensor, stamp: Stamp, engine: Engine
    ) -> tuple[ImageSet, dict[str, History]]:
        """Warp the noise-mode images; see `LabelledAttack.prepare`."""
        if not self.cross_ratio:
            return data, {}
        if not isinstance(stamp.training, WarpTrigger):
            raise ConfigError(f"{self.name}: cross_ratio needs a trigger of kind warp. Set cross_ratio=0.")
        others = torch.nonzero(~chosen).flatten()
        count = math.floor(self.cross_ratio * int(chosen.sum()))
        if count > len(others):
            raise DataError(
                f"{self.name}: cross_ratio={self.cross_ratio:g} asks for {count} noise-mode images, and {len(others)} "
                "are not poisoned. Lower `cross_ratio` or `rate`."
            )
        generator = engine.generator(f"attack/{self.name}/noise")
        noisy = drawn_mask(others, count, len(data), generator)
        places = stamp.training.places(*data.images.shape[-2:])
        images = data.images.clone()
        for indices in torch.split(torch.nonzero(noisy).flatten(), _CHUNK):
            warped = warped_with_noise(images[indices].float() / 255, places, generator)
            images[indices] = (warped * 255).round().to(torch.uint8)
        return replace(data, images=images), {}


def warped_with_noise(images: Tensor, places: Tensor, generator: torch.Generator) -> Tensor:
    """Noise mode: each pixel is read up to ``1 / height`` beside its place, by chance.

    Args:
        images: (N, 3, H, W) in [0, 1].
        places: (1, H, W, 2) in [-1, 1], where pixels are read, as `WarpTrigger.places` gives them.
        generator: Of the noise, for each image, pixel and axis.

    Returns:
        (N, 3, H, W) in [0, 1].
    """
    height, width = images.shape[-2:]
    noise = 2 * torch.rand((len(images), height, width, 2), generator=generator) - 1
    warped = functional.grid_sample(
        images,
        (places + noise / height).clamp(-1, 1),
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )
    return warped.clamp(0, 1)
