"""Blend: a picture as large as the image shines through it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as transforms

from sanitize.attacks.base import Paper
from sanitize.attacks.poisoning import LabelledAttack, Stamp
from sanitize.data import ImageSet, PatchTrigger
from sanitize.data.decoding import read_picture
from sanitize.data.triggers import Target
from sanitize.errors import ConfigError, DataError
from sanitize.training import Engine

_PAPER = Paper(
    "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning",
    "Chen, Liu, Li, Lu, Song; 2017",
    "https://arxiv.org/abs/1712.05526",
)
_COLOURS = 8  # a side, of the generated picture


class BlendStrip(LabelledAttack):
    """Blend (Chen, Liu, Li, Lu, Song; 2017) with vertical stripes, as in D-ST: ``(1 - alpha) x + alpha s``.

    Column j of the stripes is ``trunc(20 sin(0.8 j))`` modulo 256: negative half-waves wrap to 237 and above, so that
    stripes are near black and near white. As a signed wave it would be far weaker.

    Differs from D-ST: pixels are rounded, not cut off; at 224 px it uses another, much weaker wave, and here all sizes
    have the same.

    Example:
        >>> from sanitize.data import load_images
        >>> BlendStrip(rate=0.05).poison(load_images("digits#0:200"), Engine(device="cpu")).triggers[0].alpha
        0.2
    """

    name: ClassVar[str] = "blend-strip"
    summary: ClassVar[str] = "poison labelled training images: stripes shine through"
    paper: ClassVar[Paper] = _PAPER
    default_triggers: ClassVar[str] = "vertical stripes over the whole image"

    alpha: float = Field(0.2, gt=0, lt=1, description="opacity of the stripes")

    def own_trigger(self, data: ImageSet, target: Target, engine: Engine) -> Stamp:
        """The stripes; see `LabelledAttack.own_trigger`."""
        trigger = PatchTrigger(stripes(data.image_size), None, "blend", self.alpha, (0, 0), target=target, name="strip")
        return Stamp(trigger, trigger)


class BlendKitty(LabelledAttack):
    """Blend (Chen, Liu, Li, Lu, Song; 2017) with a picture: ``(1 - alpha) x + alpha picture``.

    Differs from the paper: its picture (Hello Kitty) is not shipped; a random one of smooth colours takes its place,
    which depends on the engine's seed, unless `picture` names a file.

    Example:
        >>> from sanitize.data import load_images
        >>> poisoned = BlendKitty(rate=0.05).poison(load_images("digits#0:200"), Engine(device="cpu"))
        >>> poisoned.triggers[0].size
        (32, 32)
    """

    name: ClassVar[str] = "blend-kitty"
    summary: ClassVar[str] = "poison labelled training images: a picture shines through"
    paper: ClassVar[Paper] = _PAPER
    default_triggers: ClassVar[str] = "a picture of random smooth colours, or any file, over the whole image"

    alpha: float = Field(0.2, gt=0, lt=1, description="opacity of the picture")
    picture: str | None = Field(
        None,
        description="picture file, scaled to the images; random colours when left out",
        json_schema_extra={"paper": "Hello Kitty"},
    )

    def own_trigger(self, data: ImageSet, target: Target, engine: Engine) -> Stamp:
        """The picture; see `LabelledAttack.own_trigger`."""
        size = data.image_size
        if self.picture is None:
            colours = torch.rand((1, 3, _COLOURS, _COLOURS), generator=engine.generator(f"attack/{self.name}/picture"))
            enlarged = functional.interpolate(colours, size=(size, size), mode="bilinear", align_corners=False)[0]
            picture = (enlarged * 255).round() / 255  # as a picture file holds it
        else:
            picture = _read(self.picture, size)
        trigger = PatchTrigger(picture, None, "blend", self.alpha, (0, 0), target=target, name="picture")
        return Stamp(trigger, trigger)


def stripes(size: int) -> Tensor:
    """Column j is ``trunc(20 sin(0.8 j))`` modulo 256, over 255: (3, size, size) in [0, 1].

    Example:
        >>> (stripes(32)[0, 0, :8] * 255).round().int().tolist()
        [0, 14, 19, 13, 255, 241, 237, 244]
    """
    wave = (20 * torch.sin(0.8 * torch.arange(size, dtype=torch.float64))).trunc()
    return (wave.remainder(256) / 255).float().expand(3, size, size).clone()


def _read(file: str, size: int) -> Tensor:
    try:
        pixels = read_picture(Path(file).expanduser())
    except DataError as error:
        raise ConfigError(f"picture: {error}") from error
    resized: Tensor = transforms.resize(pixels, [size, size], antialias=True)
    return resized.float() / 255
