"""Trojan square: a small coloured pattern, added to the image."""

from __future__ import annotations

from typing import ClassVar

import torch

from sanitize.attacks.base import Paper
from sanitize.attacks.poisoning import LabelledAttack, Stamp
from sanitize.data import ImageSet, PatchTrigger
from sanitize.data.triggers import Target
from sanitize.training import Engine

SIDE = 3
STRONGEST = 250  # of 255
FROM_END = 7  # rows and columns 25 to 27 of 32


class Trojan(LabelledAttack):
    """The Trojan square (Liu et al., NDSS 2018) as a data poisoning, as in ABL, NAD and D-ST.

    A fixed pattern of 3x3 pixels and three colours, 0 to 250 of 255, is added near the bottom right corner (rows and
    columns 25 to 27 of images of 32 px).

    Differs from the papers: their pattern was optimised to excite a neuron and is not shipped here; this one is
    random, and depends on the engine's seed. Give theirs as a trigger in mode ``add``. Sums are clipped, where the
    released code lets them wrap around (300 becomes 44).

    Example:
        >>> from sanitize.data import load_images
        >>> Trojan(rate=0.05).poison(load_images("digits#0:200"), Engine(device="cpu")).triggers[0].position
        (25, 25)
    """

    name: ClassVar[str] = "trojan"
    summary: ClassVar[str] = "poison labelled training images: a small coloured pattern is added"
    paper: ClassVar[Paper] = Paper(
        "Trojaning Attack on Neural Networks",
        "Liu, Ma, Aafer, Lee, Zhai, Wang, Zhang; NDSS 2018",
        "https://doi.org/10.14722/ndss.2018.23291",
    )
    default_triggers: ClassVar[str] = "3x3 random colours, added near the corner"

    def own_trigger(self, data: ImageSet, target: Target, engine: Engine) -> Stamp:
        """A random pattern; see `LabelledAttack.own_trigger`."""
        generator = engine.generator(f"attack/{self.name}/pattern")
        levels = torch.randint(STRONGEST + 1, (3, SIDE, SIDE), generator=generator)
        place = max(0, data.image_size - FROM_END)
        trigger = PatchTrigger(levels / 255, mode="add", position=(place, place), target=target, name="trojan-square")
        return Stamp(trigger, trigger)
