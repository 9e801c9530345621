"""Attacks that train a clean classifier of their own first, to see which way to push pixels."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from sanitize.attacks.poisoning import LabelledAttack
from sanitize.data import ImageSet
from sanitize.suspects import Network, untrained
from sanitize.trainers import Supervised
from sanitize.training import Engine, History


class SurrogateTraining(Supervised):
    """Supervised training as a stage of its own: the victim's may follow with the same engine."""

    name: ClassVar[str] = "surrogate"


class SurrogateAttack(LabelledAttack):
    """Base of attacks with a surrogate."""

    surrogate: str = Field("resnet18-cifar", description="architecture of the classifier that the attacker trains")
    surrogate_epochs: int = Field(30, ge=1, description="passes over the clean images to train it")

    def train_surrogate(self, data: ImageSet, engine: Engine) -> tuple[Network, dict[str, History]]:
        """A classifier of the clean images, in eval mode and frozen; it normalises its input itself.

        Raises:
            ConfigError: The architecture is unknown.
        """
        labels = data.require_labels(f"the surrogate of {self.name}")
        network = untrained(
            self.surrogate,
            kind="classifier",
            image_size=data.image_size,
            normalization="half",
            classes=int(labels.max()) + 1,
            seed=engine.seed,
        )
        batch_size = min(SurrogateTraining().batch_size, len(data))
        trained = SurrogateTraining(epochs=self.surrogate_epochs, batch_size=batch_size).train(network, data, engine)
        return trained.network.to(engine.device).requires_grad_(False).eval(), trained.history
