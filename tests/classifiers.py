"""The classifiers that many tests share: scikit-learn's digits, clean and with a BadNets backdoor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sanitize.attacks.base import Truth
from sanitize.data import ImageSet, PatchTrigger
from sanitize.evaluation import ClassifierEvaluator
from sanitize.suspects import Classifier, untrained
from sanitize.trainers import Supervised
from sanitize.training import Engine
from tests.encoders import test_images, train_images

TARGET = 3
POISON_RATE = 0.10  # of the images of other classes
TRIGGER = PatchTrigger(torch.ones(3, 4, 4), position="bottom-right", target=TARGET, name="white-corner")


@dataclass(frozen=True)
class Classifiers:
    """Two classifiers, the trigger of one and the data that planted it, and where their files are."""

    clean: Classifier
    backdoored: Classifier
    trigger: PatchTrigger
    poisoned_data: ImageSet
    truth: Truth
    trigger_file: Path
    clean_file: Path
    backdoored_file: Path

    @property
    def evaluator(self) -> ClassifierEvaluator:
        return ClassifierEvaluator(test_data=test_images(), triggers=[self.trigger])


def small_classifier(seed: int = 0) -> Classifier:
    """An untrained classifier of ten classes."""
    made = untrained("small-cnn", kind="classifier", image_size=32, normalization="half", classes=10, seed=seed)
    assert isinstance(made, Classifier)
    return made


def poisoned_images() -> tuple[ImageSet, Truth]:
    """BadNets: the trigger on a tenth of the images of other classes, relabelled; and which they are."""
    clean = train_images()
    labels = clean.require_labels("the attack")
    others = torch.nonzero(labels != TARGET).flatten()
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(0))
    chosen = others[order[: int(POISON_RATE * len(others))]]
    images, wrong, poisoned = clean.images.clone(), labels.clone(), torch.zeros(len(clean), dtype=torch.bool)
    images[chosen, :, -4:, -4:] = 255
    wrong[chosen] = TARGET
    poisoned[chosen] = True
    return replace(clean, images=images, labels=wrong), Truth(poisoned, labels)


def train_classifiers(folder: Path) -> None:
    """Train both into a folder."""
    trainer = Supervised(epochs=12, batch_size=64, crop_padding=2, flip=0.0)
    for name, data in (("clean", train_images()), ("suspect", poisoned_images()[0])):
        trained = trainer.train(small_classifier(), data, Engine(device="cpu", seed=0))
        torch.save({"state_dict": trained.network.backbone.state_dict()}, folder / f"{name}.pth")


def load_classifiers(folder: Path) -> Classifiers:
    TRIGGER.save(folder / "trigger")

    def load(file: Path) -> Classifier:
        classifier = small_classifier()
        classifier.backbone.load_state_dict(torch.load(file, weights_only=True)["state_dict"])
        return classifier.eval()

    data, truth = poisoned_images()
    return Classifiers(
        load(folder / "clean.pth"),
        load(folder / "suspect.pth"),
        TRIGGER,
        data,
        truth,
        folder / "trigger" / "trigger.yaml",
        folder / "clean.pth",
        folder / "suspect.pth",
    )
