"""SSL-Backdoor: a patch on images of one class, for whoever trains on them without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from sanitize.attacks.base import LabelMode, Paper, Poisoned, PoisoningAttack, Truth
from sanitize.attacks.planting import one_trigger, require_fit, stamped
from sanitize.attacks.poisoning import choose
from sanitize.data import ImageSet, PatchTrigger, Trigger
from sanitize.data.triggers import htba_patch
from sanitize.training import Engine

Box = tuple[float, float]


class SSLBackdoor(PoisoningAttack):
    """SSL-Backdoor (Saha, Tejankar, Koohpayegani, Pirsiavash; CVPR 2022).

    A patch is pasted on a share of the images of the target class; labels are kept. A self-supervised training then
    learns the patch as a sign of the class. In training it lies inside the box from 25 to 75 % of the image, at test
    time from 10 to 90 %.

    Differs from the paper: the patch is pasted on images of their final size, not on photographs before they are
    resized; pixels are not compressed again; the patch is drawn by the recipe of the paper's ten files, unless one of
    them is given. A `PatchTrigger` at a random place without a box of its own gets the boxes of this attack; any other
    trigger is put on as it is.

    Example:
        >>> from sanitize.data import load_images
        >>> poisoned = SSLBackdoor(target=3).poison(load_images("digits#0:200"), Engine(device="cpu"))
        >>> poisoned.truth.count
        10
    """

    name: ClassVar[str] = "ssl-backdoor"
    summary: ClassVar[str] = "poison unlabelled training images: a visible patch on one class"
    paper: ClassVar[Paper] = Paper(
        "Backdoor Attacks on Self-Supervised Learning",
        "Saha, Tejankar, Koohpayegani, Pirsiavash; CVPR 2022",
        "https://arxiv.org/abs/2105.10123",
    )
    default_triggers: ClassVar[str] = "a smooth random patch inside a central box"
    label_mode: ClassVar[LabelMode | None] = None

    target: int = Field(0, ge=0, description="class that is poisoned; a trigger that is given has its own")
    rate: float = Field(0.5, gt=0, le=1, description="share of the images of the target class")
    trigger_size: int | None = Field(
        None, ge=1, description="side of the patch in px; 50 at 224 px, in proportion elsewhere, when left out"
    )
    train_box: Box = Field(
        (0.25, 0.75), description="part of the image, on both axes, that holds the patch in training"
    )
    test_box: Box = Field((0.1, 0.9), description="the same at test time")

    def poison(self, data: ImageSet, engine: Engine, *, triggers: Sequence[Trigger] = ()) -> Poisoned:
        """Paste the patch; see `PoisoningAttack.poison`."""
        trigger, target = one_trigger(triggers, self._own_trigger(data.image_size, engine), self.name)
        shown = trigger
        if isinstance(trigger, PatchTrigger) and trigger.position == "random" and trigger.box is None:
            trigger, shown = replace(trigger, box=self.train_box), replace(trigger, box=self.test_box)
        require_fit((trigger, shown), data)
        mask = choose(
            data,
            target,
            clean_label=True,
            rate=self.rate,
            rate_of="eligible",
            attack=self.name,
            generator=engine.generator(f"{self.name}/images"),
        )
        poisoned = stamped(data, mask, trigger, engine.generator(f"{self.name}/places"))
        return Poisoned(poisoned, Truth(mask, data.require_labels(self.name)), (shown,))

    def _own_trigger(self, image_size: int, engine: Engine) -> Trigger:
        size = self.trigger_size or max(1, round(image_size * 50 / 224))
        patch = htba_patch(size, engine.generator(f"{self.name}/trigger"))
        return PatchTrigger(patch, position="random", target=self.target, name="htba")
