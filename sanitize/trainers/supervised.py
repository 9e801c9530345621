"""Supervised training: cross-entropy on labels, as everyone does it who does not think of backdoors."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from sanitize.data import DeviceImages, ImageSet
from sanitize.data.crops import PaddedCrops
from sanitize.data.labels import training_labels
from sanitize.errors import ConfigError
from sanitize.suspects.networks import Network
from sanitize.trainers.base import Paper, Trained, Trainer
from sanitize.training import Engine, Watch
from sanitize.types import ModelKind


class Supervised(Trainer):
    """Cross-entropy by SGD with momentum, random crops and flips (He et al., CVPR 2016, section 4.2).

    It defends against nothing: a classifier trained so on poisoned data has the backdoor. It is what the trainings
    that do defend are compared with.

    Differs from the paper:
        - The learning rate falls by a cosine (or rises and falls in one cycle), not in steps.
        - 100 epochs and a weight decay of 5e-4, as is usual on CIFAR-10 since.

    Example:
        >>> from sanitize.data import load_images
        >>> from sanitize.suspects import untrained
        >>> network = untrained("small-cnn", kind="classifier", image_size=32, normalization="half", classes=10)
        >>> trainer = Supervised(epochs=1, crop_padding=2, flip=0.0)
        >>> sorted(trainer.train(network, load_images("digits#0:64"), Engine(device="cpu")).metrics)
        ['training_accuracy']
    """

    name: ClassVar[str] = "supervised"
    summary: ClassVar[str] = "cross-entropy on labels; no defence, the baseline of those that are"
    paper: ClassVar[Paper] = Paper(
        "Deep Residual Learning for Image Recognition",
        "He, Zhang, Ren, Sun; CVPR 2016",
        "https://arxiv.org/abs/1512.03385",
    )
    kind: ClassVar[ModelKind] = "classifier"
    needs_labels: ClassVar[bool] = True

    epochs: int = Field(100, ge=1, description="passes over the images", json_schema_extra={"paper": 182})
    batch_size: int = Field(128, ge=2, description="images a step; a last batch that is not full is left out")
    learning_rate: float = Field(0.1, gt=0, description="highest of the schedule")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(5e-4, ge=0, description="of SGD", json_schema_extra={"paper": 1e-4})
    schedule: Literal["cosine", "one-cycle"] = Field(
        "cosine", description="how the learning rate changes, step by step", json_schema_extra={"paper": "steps"}
    )
    crop_padding: int = Field(4, ge=0, description="pixels by which images are shifted at most")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a mirrored image; 0 where left and right differ")

    def train(
        self, network: Network, data: ImageSet, engine: Engine, *, monitor: tuple[ImageSet, ImageSet] | None = None
    ) -> Trained:
        """Train a classifier in place; see `Trainer.train`. Of `monitor`, only the test images are used.

        Raises:
            ConfigError: The network is no classifier.
            DataError: Labels are missing, are all the same, or name classes that the network does not have.
        """
        if network.spec.kind != "classifier":
            raise ConfigError(f"{self.name} trains classifiers, and this is an {network.spec.kind}.")
        labels = training_labels(data, self.name, classes=network.spec.output_size).to(engine.device)
        images = DeviceImages(data, engine.device)
        crops = PaddedCrops(self.crop_padding, flip=self.flip)

        def loss(module: nn.Module, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            logits = module(crops(images.pixels(indices), generator))
            wanted = labels[indices.to(engine.device)]
            accuracy = (logits.argmax(dim=1) == wanted).float().mean()
            return {"loss": cross_entropy(logits, wanted), "augmented_accuracy": accuracy}

        history = engine.fit(
            self.name,
            network,
            loss,
            images=len(images),
            batch_size=self.batch_size,
            epochs=self.epochs,
            drop_last=True,
            optimizer=lambda parameters: SGD(
                parameters, lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
            ),
            scheduler=self._scheduler,
            watch=_accuracy_on(monitor[1], engine) if monitor else None,
        )
        return Trained(network, {self.name: history}, {"training_accuracy": _accuracy(network, images, engine)})

    def _scheduler(self, optimizer: Optimizer, steps: int) -> LRScheduler:
        if self.schedule == "cosine":
            return CosineAnnealingLR(optimizer, T_max=steps)
        # Momentum stays as it was set: cycling it too would make `momentum` an option without effect.
        return OneCycleLR(optimizer, max_lr=self.learning_rate, total_steps=steps, cycle_momentum=False)


def _accuracy_on(data: ImageSet, engine: Engine) -> Watch:
    images = DeviceImages(data, engine.device)

    def watch(network: nn.Module) -> tuple[dict[str, float], str | None]:
        return {"test_accuracy": _accuracy(network, images, engine)}, None

    return watch


def _accuracy(network: nn.Module, images: DeviceImages, engine: Engine) -> float:
    assert images.labels is not None
    predicted = engine.forward(network, images.pixels, len(images)).argmax(dim=1)
    return float((predicted == images.labels.cpu()).float().mean())
