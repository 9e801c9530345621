"""What every attack is: parameters in the constructor, data (and an encoder) in the call. Red team only.

To add one: a file with a subclass of `PoisoningAttack` or `EncoderAttack`, a line in `sanitize.attacks`, a row in
tests/attacks/test_table.py.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from sanitize.data.images import ImageSet
from sanitize.data.triggers import Trigger
from sanitize.method import Method, Paper
from sanitize.suspects.networks import Network
from sanitize.training import Engine, History

LabelMode = Literal["all-to-one", "all-to-all", "clean-label"]


@dataclass(frozen=True)
class Truth:
    """What only the attacker and the evaluation know of a poisoned data set.

    Args:
        poisoned: (N,) bool: which images carry the training trigger.
        labels: (N,) int64: true classes.
    """

    poisoned: Tensor
    labels: Tensor

    @property
    def count(self) -> int:
        """How many images are poisoned, as realised."""
        return int(self.poisoned.sum())

    @property
    def share(self) -> float:
        """Share of all images that is poisoned, as realised."""
        return self.count / len(self.poisoned)


@dataclass(frozen=True)
class Poisoned:
    """A poisoned data set, and the truth about it.

    Args:
        data: What a victim gets; same order and size as the clean data.
        truth: Kept apart.
        triggers: What the attacker shows at test time (it may differ from what was trained on).
        history: Stages of surrogates or generators that the attack trained.
    """

    data: ImageSet
    truth: Truth
    triggers: tuple[Trigger, ...]
    history: dict[str, History] = field(default_factory=dict)


@dataclass(frozen=True)
class Implanted:
    """A backdoored encoder, and its triggers."""

    network: Network
    triggers: tuple[Trigger, ...]
    history: dict[str, History]


class Attack(Method):
    """Base of all attacks."""

    default_triggers: ClassVar[str]
    """What the trigger is when none is given, in a few words."""


class PoisoningAttack(Attack):
    """An attack that changes training data; whoever trains on it plants the backdoor."""

    label_mode: ClassVar[LabelMode | None]
    """None for data without labels (self-supervised learning); a parameter where labels are changed."""

    @abstractmethod
    def poison(self, data: ImageSet, engine: Engine, *, triggers: Sequence[Trigger] = ()) -> Poisoned:
        """Poison a data set.

        Args:
            data: Clean, with labels (the attacker knows them); left unchanged.
            engine: Device and seed (and training of surrogates).
            triggers: Instead of the attack's own trigger, where it allows that.

        Raises:
            ConfigError: The trigger does not fit the images, or the attack allows no other trigger.
            DataError: The target class is not in the data, or too few images are to be poisoned.
        """


class EncoderAttack(Attack):
    """An attack that fine-tunes an encoder."""

    @abstractmethod
    def implant(
        self, network: Network, data: ImageSet, engine: Engine, *, triggers: Sequence[Trigger] = ()
    ) -> Implanted:
        """Plant the backdoor in a copy of an encoder.

        Args:
            network: A clean encoder; left unchanged.
            data: Shadow images with labels (the attacker picks references by them).
            engine: Device and seed.
            triggers: Instead of the attack's own, each with its target.

        Raises:
            ConfigError: A trigger does not fit the images or has no target.
            DataError: A target class is not in the data.
        """


__all__ = [
    "Attack",
    "EncoderAttack",
    "Implanted",
    "LabelMode",
    "Paper",
    "Poisoned",
    "PoisoningAttack",
    "Truth",
]
