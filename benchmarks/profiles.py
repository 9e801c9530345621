"""Scales at which a study runs: `paper` for a GPU, `small` for two CPU cores."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sanitize.data import ImageSet, load_images
from sanitize.defenses import DEFENSES
from sanitize.detection.catalogue import MODEL_DETECTORS
from sanitize.errors import ConfigError, DataError
from sanitize.types import ModelKind


def data_folder() -> Path:
    """Where the Parquet files are: SANITIZE_DATA, or ``../shared/data``."""
    return Path(os.environ.get("SANITIZE_DATA", Path(__file__).parents[2] / "shared" / "data"))


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One data scale.

    Args:
        name: ``paper``, ``small`` or ``digits``.
        train: DATA of the pre-training; the probe is fitted on it as well.
        test: DATA of the evaluation.
        normalization: Name.
        image_size: Pixels.
        architecture: Default backbone.
        share: Share of the training images that a defence gets, clean and without labels.
        pretraining: Settings of every self-supervised trainer.
        attack: Settings of fine-tuning attacks.
        defenses: Settings of a defence at this scale, by its name.
        decree: Settings of DECREE.
    """

    name: str
    train: str
    test: str
    normalization: str
    image_size: int
    architecture: str
    share: float = 0.1
    pretraining: dict[str, Any] = field(default_factory=dict)
    attack: dict[str, Any] = field(default_factory=dict)
    defenses: dict[str, dict[str, Any]] = field(default_factory=dict)
    decree: dict[str, Any] = field(default_factory=dict)

    def settings_of(self, kind: ModelKind) -> str:
        """Settings, beside the defaults, of the defences and detectors for this kind of model; for a page."""
        known = DEFENSES | MODEL_DETECTORS
        settings = self.defenses | ({"decree": self.decree} if self.decree else {})
        listed = [
            f"{name} {', '.join(f'{setting} {value}' for setting, value in values.items())}"
            for name, values in settings.items()
            if kind in known[name].kinds
        ]
        return "; ".join(listed) or "none"

    def images(self, which: str) -> ImageSet:
        """The training or the test images.

        Raises:
            DataError: The files are not there; says where they were looked for.
        """
        source = self.train if which == "train" else self.test
        if source.startswith("digits"):
            return load_images(source, image_size=self.image_size)
        path = data_folder() / source
        if not Path(str(path).partition("#")[0]).exists():
            raise DataError(
                f"profile {self.name} needs {path}; set SANITIZE_DATA to the folder with the Parquet files."
            )
        return load_images(str(path), image_size=self.image_size)


PAPER = Profile(
    name="paper",
    train="cifar10-train.parquet",
    test="cifar10-test.parquet",
    normalization="cifar10",
    image_size=32,
    architecture="resnet18-cifar",
    pretraining={"epochs": 200, "batch_size": 512, "learning_rate": 0.24},
    attack={"epochs": 20, "batch_size": 64, "learning_rate": 0.01},
)
SMALL = Profile(
    name="small",
    train="cifar10-train.parquet#0:4000",
    test="cifar10-test.parquet#0:2000",
    normalization="cifar10",
    image_size=32,
    architecture="small-cnn",
    pretraining={"epochs": 30, "batch_size": 128, "learning_rate": 0.1},
    attack={"epochs": 10, "batch_size": 64, "learning_rate": 0.02, "utility_weight": 2.0, "pairs_per_step": 3},
    defenses={"ssl-cleanse": {"steps": 200}},
    decree={"steps": 200, "batch_size": 64, "repeats": 1},
)
DIGITS = Profile(
    name="digits",
    train="digits#0:1400",
    test="digits#1400:",
    normalization="half",
    image_size=32,
    architecture="small-cnn",
    pretraining={"epochs": 25, "batch_size": 128, "learning_rate": 0.1, "flip": 0.0, "min_crop_scale": 0.5},
    attack={"epochs": 16, "batch_size": 64, "learning_rate": 0.02, "utility_weight": 2.0},
    defenses={
        "fine-tune": {"flip": 0.0, "crop_padding": 2},
        "nad": {"flip": 0.0, "crop_padding": 2},
        "d-br": {"flip": 0.0, "crop_padding": 2},
        "ssl-cleanse": {"steps": 200},
        "neural-cleanse": {"steps": 150, "repeats": 2},
    },
    decree={"steps": 200, "batch_size": 64, "repeats": 1},
)
PROFILES = {profile.name: profile for profile in (PAPER, SMALL, DIGITS)}


def profile_named(name: str, known: Mapping[str, Profile] = PROFILES) -> Profile:
    """A profile.

    Raises:
        ConfigError: Unknown name.
    """
    if name not in known:
        raise ConfigError(f"unknown profile {name!r}; known are {', '.join(known)}.")
    return known[name]
