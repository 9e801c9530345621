"""Encoders of digits for the detectors of poisoned data: a clean one, and one that took a shortcut by a patch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.shortcut import take_shortcut
from sanitize.attacks import SSLBackdoor
from sanitize.attacks.base import Poisoned
from sanitize.data import ImageSet, PatchTrigger, load_images
from sanitize.suspects import Encoder
from sanitize.trainers import SimCLR
from sanitize.training import Engine
from tests.encoders import small_encoder

ATTACK = SSLBackdoor(target=3, rate=0.5, trigger_size=7)


@dataclass(frozen=True)
class Threat:
    """Encoders and data; 30 of the 600 images have a patch of 7 px."""

    clean: Encoder
    backdoored: Encoder
    clean_file: Path
    backdoored_file: Path

    @cached_property
    def data(self) -> ImageSet:
        return load_images("digits#0:600")

    @cached_property
    def poison(self) -> Poisoned:
        return ATTACK.poison(self.data, Engine(device="cpu"))

    @property
    def truth(self) -> Tensor:
        return self.poison.truth.poisoned

    @property
    def trigger(self) -> PatchTrigger:
        (trigger,) = self.poison.triggers
        assert isinstance(trigger, PatchTrigger)
        return trigger

    @cached_property
    def boxes(self) -> Tensor:
        """(600, 4) top, left, height, width of what the attack changed."""
        changed = (self.poison.data.images != self.data.images).any(dim=1)
        found = torch.zeros(len(changed), 4, dtype=torch.int64)
        for row in torch.nonzero(self.truth).flatten().tolist():
            places = torch.nonzero(changed[row])
            low, high = places.amin(dim=0), places.amax(dim=0)
            found[row] = torch.cat([low, high - low + 1])
        return found


def train_threat(folder: Path) -> None:
    """Train both into a folder."""
    engine, data = Engine(device="cpu"), load_images("digits#0:600")
    trainer = SimCLR(epochs=5, batch_size=128, learning_rate=0.1, min_crop_scale=0.5, flip=0.0)
    clean = trainer.train(small_encoder(), data.without_labels(), engine).network
    trigger = ATTACK.poison(data, engine).triggers[0]
    assert isinstance(trigger, PatchTrigger)
    backdoored = take_shortcut(clean, data, [trigger], engine)
    for name, network in (("clean", clean), ("backdoored", backdoored)):
        torch.save({"state_dict": network.backbone.state_dict()}, folder / f"{name}.pth")


def load_threat(folder: Path) -> Threat:
    def load(file: Path) -> Encoder:
        encoder = small_encoder()
        encoder.backbone.load_state_dict(torch.load(file, weights_only=True)["state_dict"])
        return encoder.eval()

    files = [folder / f"{name}.pth" for name in ("clean", "backdoored")]
    return Threat(load(files[0]), load(files[1]), *files)
