"""BadNets: a small patch in a corner, and a wrong label."""

from __future__ import annotations

from typing import ClassVar

import torch

from sanitize.attacks.base import Paper
from sanitize.attacks.poisoning import LabelledAttack, Stamp
from sanitize.data import ImageSet, PatchTrigger
from sanitize.data.triggers import Target
from sanitize.training import Engine

GRID = ((0, 0, 1), (0, 1, 0), (1, 0, 1))
"""Rows from top to bottom, in all channels; 1 is white."""
LARGEST_WITH_GRID = 64  # px; on larger images three pixels are lost in the first resizing


class BadNets(LabelledAttack):
    """BadNets (Gu, Dolan-Gavitt, Garg; 2017).

    A patch in the bottom right corner: a 3x3 grid of black and white pixels, or on images above 64 px, and with
    ``label_mode="all-to-all"``, a white square of a tenth of the image's side. The all-to-all square lies one pixel
    away from both edges. Patterns and places are those of the D-ST and D-BR experiments.

    Example:
        >>> from sanitize.data import load_images
        >>> poisoned = BadNets(target=3, rate=0.1).poison(load_images("digits#0:200"), Engine(device="cpu"))
        >>> poisoned.truth.count, int((poisoned.data.labels == 3).sum() - (poisoned.truth.labels == 3).sum())
        (17, 17)
    """

    name: ClassVar[str] = "badnets"
    summary: ClassVar[str] = "poison labelled training images: a patch in the corner"
    paper: ClassVar[Paper] = Paper(
        "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain",
        "Gu, Dolan-Gavitt, Garg; 2017",
        "https://arxiv.org/abs/1708.06733",
    )
    default_triggers: ClassVar[str] = "a 3x3 grid in the corner; a white square for all-to-all and large images"

    def own_trigger(self, data: ImageSet, target: Target, engine: Engine) -> Stamp:
        """Grid or square; see `LabelledAttack.own_trigger`."""
        size = data.image_size
        square = torch.ones(3, max(1, size // 10), max(1, size // 10))
        if target == "next":
            place = size - 1 - square.shape[1]
            trigger = PatchTrigger(square, position=(place, place), target=target, name="square")
        elif size > LARGEST_WITH_GRID:
            trigger = PatchTrigger(square, position="bottom-right", target=target, name="square")
        else:
            grid = torch.tensor(GRID, dtype=torch.float32).expand(3, 3, 3).clone()
            trigger = PatchTrigger(grid, position="bottom-right", target=target, name="grid")
        return Stamp(trigger, trigger)
