"""What attacks on labelled data have in common: which images are poisoned, and the labels that they get."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from sanitize.attacks.base import LabelMode, Poisoned, PoisoningAttack, Truth
from sanitize.attacks.planting import drawn_mask, images_of_class, require_fit, stamped
from sanitize.data import ImageSet, Trigger
from sanitize.data.triggers import Target
from sanitize.errors import ConfigError, DataError
from sanitize.training import Engine, History


@dataclass(frozen=True)
class Stamp:
    """The trigger of an attack.

    Args:
        training: What is put on training images.
        shown: What the attacker shows at test time.
        history: Stages that were trained to make it.
    """

    training: Trigger
    shown: Trigger
    history: dict[str, History] = field(default_factory=dict)


class LabelledAttack(PoisoningAttack):
    """Base of attacks on the training data of classifiers.

    Poisoned images are drawn at random among the eligible ones. Labels and eligible images depend on the label mode:

    - ``all-to-one``: images of all classes but the target, relabelled as the target;
    - ``all-to-all``: all images, each relabelled as the class after its own (the last one becomes 0); no target;
    - ``clean-label``: images of the target class, label kept.
    """

    takes_triggers: ClassVar[bool] = True
    """Whether another trigger may be given."""

    label_mode: LabelMode = Field("all-to-one", description="which images are poisoned, and their labels")  # type: ignore[misc]
    target: int = Field(0, ge=0, description="class that the attacker wants; a trigger that is given may name its own")
    rate: float = Field(0.1, gt=0, le=1, description="share of images that is poisoned, rounded down")
    rate_of: Literal["eligible", "all"] = Field("eligible", description="what `rate` is a share of")

    def poison(self, data: ImageSet, engine: Engine, *, triggers: Sequence[Trigger] = ()) -> Poisoned:
        """Poison a labelled data set; see `PoisoningAttack.poison`."""
        labels = data.require_labels(f"the attack {self.name}")
        given = self._given(triggers)
        target: Target = "next" if self.label_mode == "all-to-all" else self.target
        if given is not None:
            given = _aimed(given, target)
            target = given.target
            require_fit((given,), data)
        chosen = choose(
            data,
            target,
            clean_label=self.label_mode == "clean-label",
            rate=self.rate,
            rate_of=self.rate_of,
            attack=self.name,
            generator=engine.generator(f"attack/{self.name}"),
        )
        stamp = self.own_trigger(data, target, engine) if given is None else Stamp(given, given)
        require_fit((stamp.training, stamp.shown), data)
        prepared, history = self.prepare(data, chosen, stamp, engine)
        poisoned = stamped(prepared, chosen, stamp.training, engine.generator(f"attack/{self.name}/places"))
        return Poisoned(
            replace(poisoned, labels=relabelled(data, chosen, target)),
            Truth(chosen, labels),
            (stamp.shown,),
            stamp.history | history,
        )

    @abstractmethod
    def own_trigger(self, data: ImageSet, target: Target, engine: Engine) -> Stamp:
        """The trigger when none is given, for images like those of `data`."""

    def prepare(
        self, data: ImageSet, chosen: Tensor, stamp: Stamp, engine: Engine
    ) -> tuple[ImageSet, dict[str, History]]:
        """What is done to images before the trigger is put on those that are `chosen`, (N,) bool: nothing, usually."""
        return data, {}

    def _given(self, triggers: Sequence[Trigger]) -> Trigger | None:
        if triggers and not self.takes_triggers:
            raise ConfigError(f"{self.name} makes its own trigger ({self.default_triggers}); no other can be given.")
        if len(triggers) > 1:
            raise ConfigError(f"{self.name} plants one trigger, and {len(triggers)} were given.")
        return triggers[0] if triggers else None


def choose(
    data: ImageSet,
    target: Target,
    *,
    clean_label: bool,
    rate: float,
    rate_of: Literal["eligible", "all"],
    attack: str,
    generator: torch.Generator,
) -> Tensor:
    """Which images are poisoned, (N,) bool.

    Args:
        data: With labels.
        target: A class, or ``next``: then all images are eligible.
        clean_label: Whether images of the target class are eligible, instead of those of all others.
        rate: In (0, 1].
        rate_of: ``eligible`` images, or ``all``.
        attack: For messages.
        generator: Of the draw.

    Raises:
        DataError: The target class is not in the data, or no image, or more than the eligible ones, are to be poisoned.
    """
    labels = data.require_labels(f"the attack {attack}")
    if isinstance(target, int):
        of_target = images_of_class(data, target, attack)
        eligible = of_target if clean_label else torch.nonzero(labels != target).flatten()
    else:
        eligible = torch.arange(len(data))
    total = len(eligible) if rate_of == "eligible" else len(data)
    count = math.floor(round(rate * total, 6))  # 0.29 * 100 is 28.999999999999996
    if not 0 < count <= len(eligible):
        raise DataError(
            f"{attack}: rate={rate:g} of {total} images ({rate_of}) is {count}, and {len(eligible)} images are "
            "eligible; at least 1 and at most all of them can be poisoned. Change `rate`, or give other data."
        )
    return drawn_mask(eligible, count, len(data), generator)


def relabelled(data: ImageSet, chosen: Tensor, target: Target) -> Tensor:
    """Labels (N,) after the attack: of chosen images the target, or with ``next`` the class after their own."""
    labels = data.require_labels("relabelling")
    if isinstance(target, int):
        return torch.where(chosen, target, labels)
    classes = len(data.class_names) if data.class_names else int(labels.max()) + 1
    return torch.where(chosen, (labels + 1) % classes, labels)


def _aimed(trigger: Trigger, target: Target) -> Trigger:
    """A given trigger with its own target, or the attack's where it has none."""
    if trigger.target is None:
        aimed = replace(trigger, target=target)  # type: ignore[type-var]
        return aimed
    if (trigger.target == "next") != (target == "next"):
        raise ConfigError(
            f"trigger {trigger.name!r} has target {trigger.target}, which goes with label_mode "
            f"{'all-to-all' if trigger.target == 'next' else 'all-to-one or clean-label'}. Change one of them."
        )
    return trigger
