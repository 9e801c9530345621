"""CTRL: a nearly invisible change of colour frequencies on images of one class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field

from sanitize.attacks.base import LabelMode, Paper, Poisoned, PoisoningAttack, Truth
from sanitize.attacks.planting import images_of_class, one_trigger, require_fit, stamped
from sanitize.attacks.poisoning import choose
from sanitize.data import ImageSet, Trigger
from sanitize.data.triggers import FrequencyTrigger
from sanitize.training import Engine


class CTRL(PoisoningAttack):
    """CTRL (Li, Pang, Xi, Du, Ji, Yao, Wang; ICCV 2023).

    Two DCT coefficients of the colour channels are raised in some images of the target class; labels are kept. As the
    change survives augmentation, a self-supervised training ties it to the class. It is stronger at test time.

    Differs from the paper: poisoned images are drawn at random, unless ``selection="first"`` (the released script takes
    the first ones). A trigger that is given is used as it is, in training and at test time.

    Example:
        >>> from sanitize.data import load_images
        >>> CTRL(target=3).poison(load_images("digits#0:200"), Engine(device="cpu")).truth.count
        2
    """

    name: ClassVar[str] = "ctrl"
    summary: ClassVar[str] = "poison unlabelled training images: an invisible frequency trigger on one class"
    paper: ClassVar[Paper] = Paper(
        "An Embarrassingly Simple Backdoor Attack on Self-supervised Learning",
        "Li, Pang, Xi, Du, Ji, Yao, Wang; ICCV 2023",
        "https://arxiv.org/abs/2210.07346",
    )
    default_triggers: ClassVar[str] = "two raised DCT coefficients of U and V"
    label_mode: ClassVar[LabelMode | None] = None

    target: int = Field(0, ge=0, description="class that is poisoned; a trigger that is given has its own")
    rate: float = Field(0.01, gt=0, le=1, description="share of all images; all of them are of the target class")
    magnitude: float = Field(50.0, gt=0, description="added to the coefficients in training, for pixels up to 255")
    test_magnitude: float = Field(100.0, gt=0, description="the same at test time")
    window: int | None = Field(
        None,
        ge=2,
        description="side of the windows of the DCT in px; the whole image when left out",
        json_schema_extra={"paper": 32},
    )
    selection: Literal["random", "first"] = Field(
        "random", description="which images of the class are poisoned", json_schema_extra={"paper": "first"}
    )

    def poison(self, data: ImageSet, engine: Engine, *, triggers: Sequence[Trigger] = ()) -> Poisoned:
        """Raise the coefficients; see `PoisoningAttack.poison`."""
        trigger, target = one_trigger(triggers, self._trigger(self.magnitude), self.name)
        shown = trigger if triggers else self._trigger(self.test_magnitude)
        require_fit((trigger, shown), data)
        mask = choose(
            data,
            target,
            clean_label=True,
            rate=self.rate,
            rate_of="all",
            attack=self.name,
            generator=engine.generator(f"{self.name}/images"),
        )
        if self.selection == "first":
            first = images_of_class(data, target, self.name)[: int(mask.sum())]
            mask = torch.zeros_like(mask).index_fill(0, first, True)
        poisoned = stamped(data, mask, trigger, engine.generator(f"{self.name}/trigger"))
        return Poisoned(poisoned, Truth(mask, data.require_labels(self.name)), (shown,))

    def _trigger(self, magnitude: float) -> Trigger:
        return FrequencyTrigger(magnitude, self.window, self.target, name="ctrl")
