"""The encoders that many tests share: SimCLR on scikit-learn's digits, clean and with a BadEncoder backdoor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from sanitize.data import ImageSet, Trigger, load_images
from sanitize.demonstration import Demonstration
from sanitize.evaluation import EncoderEvaluator
from sanitize.suspects import Encoder, build, wrap
from sanitize.trainers import SimCLR
from sanitize.training import Engine
from sanitize.types import ModelSpec, Normalization


@dataclass(frozen=True)
class Encoders:
    """Two encoders, the trigger of one, and where their files are."""

    clean: Encoder
    backdoored: Encoder
    trigger: Trigger
    trigger_file: Path
    clean_file: Path
    backdoored_file: Path

    @property
    def evaluator(self) -> EncoderEvaluator:
        return EncoderEvaluator(probe_data=train_images(), test_data=test_images(), triggers=[self.trigger])


def train_images() -> ImageSet:
    return load_images("digits#0:1400")


def test_images() -> ImageSet:
    return load_images("digits#1400:")


test_images.__test__ = False  # where it is imported, pytest would take it for a test


def defender_images() -> ImageSet:
    return load_images("digits#0:420").without_labels()


def small_encoder(seed: int = 0) -> Encoder:
    """An untrained encoder."""
    torch.manual_seed(seed)
    made = build("small-cnn", kind="encoder", image_size=32)
    spec = ModelSpec(
        kind="encoder",
        architecture="small-cnn",
        normalization=Normalization.named("half"),
        image_size=32,
        output_size=made.output_size,
    )
    return wrap(made.backbone, spec)


def train_encoders(folder: Path) -> None:
    """Train both into a folder."""
    Demonstration(seed=0).train(folder, Engine(device="cpu", seed=0))


def train_references(folder: Path) -> None:
    """Five more clean encoders, trained shortly, of other seeds: `0.pth` to `4.pth`."""
    for number in range(5):
        encoder = small_encoder(seed=number + 1)
        trainer = SimCLR(epochs=6, batch_size=128, learning_rate=0.1, min_crop_scale=0.5, flip=0.0)
        images = train_images().subset(slice(0, 1000)).without_labels()
        trainer.train(encoder, images, Engine(device="cpu", seed=number + 1))
        torch.save({"state_dict": encoder.backbone.state_dict()}, folder / f"{number}.pth")


def load_encoders(folder: Path) -> Encoders:
    def load(file: Path) -> Encoder:
        encoder = small_encoder()
        encoder.backbone.load_state_dict(torch.load(file, weights_only=True)["state_dict"])
        return encoder.eval()

    trigger_file = folder / "trigger" / "trigger.yaml"
    return Encoders(
        load(folder / "clean.pth"),
        load(folder / "suspect.pth"),
        Trigger.from_yaml(trigger_file),
        trigger_file,
        folder / "clean.pth",
        folder / "suspect.pth",
    )
