"""Every training on the same digits: what is learnt is worth more than what was there, and the loss falls.

To add a trainer: one row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from sanitize.data import DeviceImages, ImageSet, load_images
from sanitize.evaluation.probe import knn_accuracy
from sanitize.suspects import Network, untrained
from sanitize.trainers import BYOL, DST, TRAINERS, Decoupled, MoCoV3, SimCLR, Supervised, Trainer
from sanitize.training import Engine

SIZE = 16  # px: a quarter of the work of 32


@dataclass(frozen=True)
class Row:
    """What is expected of a training on 600 digits."""

    trainer: Trainer
    error: float  # at most, as a share of the untrained network's (of an encoder by kNN, of a classifier its own)


DIGITS: dict[str, Any] = {"batch_size": 64, "flip": 0.0}
VIEWS: dict[str, Any] = {"epochs": 20, "min_crop_scale": 0.5, "grey": 0.0}
HEADS: dict[str, Any] = {"hidden": 256, "dimensions": 64, "solarise": (0.0, 0.0)}
ROWS = [
    Row(SimCLR(**DIGITS, **VIEWS, learning_rate=0.1), error=0.75),
    Row(MoCoV3(**DIGITS, **VIEWS, **HEADS, ema=0.9, learning_rate=0.1), error=0.75),
    Row(BYOL(**DIGITS, **VIEWS, **HEADS, ema=0.97, optimizer="adamw", learning_rate=0.003), error=0.75),
    Row(Supervised(**DIGITS, epochs=8, crop_padding=1), error=0.15),
    Row(
        Decoupled(
            **DIGITS,
            ssl_settings={**VIEWS, "epochs": 10, "batch_size": 64, "learning_rate": 0.1, "blur": (0.0, 0.0)},
            classifier_epochs=20,
            epochs=8,
            crop_padding=1,
            unlabelled_weight=2.0,
        ),
        error=0.3,
    ),
    Row(
        DST(
            **DIGITS,
            **VIEWS | {"epochs": 15},
            learning_rate=0.1,
            split_epochs=4,
            split_learning_rate=0.1,
            clean_share=0.4,
        ),
        error=0.3,
    ),
]
by_name = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.trainer.name)


def images() -> ImageSet:
    return load_images("digits#0:600", image_size=SIZE)


def fresh(trainer: Trainer) -> Network:
    classes = 10 if trainer.kind == "classifier" else None
    return untrained("small-cnn", kind=trainer.kind, image_size=SIZE, normalization="half", classes=classes)


def error_of(network: Network, engine: Engine) -> float:
    test = load_images("digits#1400:", image_size=SIZE)
    outputs, known = (engine.forward(network, DeviceImages(s, "cpu").pixels, len(s)) for s in (test, images()))
    labels = test.require_labels("the test")
    if network.spec.kind == "classifier":
        return float((outputs.argmax(dim=1) != labels).float().mean())
    return 1 - knn_accuracy(outputs, labels, known, images().require_labels("the bank"), temperature=0.1)


def test_every_trainer_has_a_row():
    assert {row.trainer.name for row in ROWS} == set(TRAINERS)


@pytest.mark.slow
@by_name
def test_it_learns(row):
    network, engine = fresh(row.trainer), Engine(device="cpu", channels_last=True)
    before = error_of(network, engine)
    data = images() if row.trainer.needs_labels else images().without_labels()
    result = row.trainer.train(network, data, engine)
    assert result.network is network and not network.training
    after = error_of(network, engine)
    assert after <= row.error * before
    for history in result.history.values():
        losses = [values["loss"] for values in history.epochs]
        assert sum(losses[-3:]) < sum(losses[:3])


@by_name
def test_the_seed_decides(row):
    def weights(seed: int) -> torch.Tensor:
        short = row.trainer.model_copy(update={"epochs": 1})
        network = fresh(short)
        short.train(network, images().subset(slice(128)), Engine(device="cpu", seed=seed))
        return torch.cat([value.flatten().double() for value in network.state_dict().values()])

    first = weights(1)
    torch.manual_seed(99)  # the global generator must not matter
    assert torch.equal(first, weights(1))
    assert not torch.equal(first, weights(2))
