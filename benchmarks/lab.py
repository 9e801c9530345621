"""The laboratory of a study: data, engines, and networks that are trained once and kept under their settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from benchmarks.profiles import Profile
from sanitize.data import ImageSet
from sanitize.data.triggers import Trigger
from sanitize.evaluation import EncoderEvaluator
from sanitize.suspects import Network, untrained
from sanitize.training import Display, Engine
from sanitize.types import ModelKind


@dataclass(frozen=True)
class Subject:
    """A network and the attacker's triggers (none for a clean one)."""

    key: str
    network: Network
    triggers: tuple[Trigger, ...] = ()


@dataclass(frozen=True)
class Lab:
    """Where a study works.

    Args:
        profile: Data scale.
        work: Folder of networks, checkpoints and results; a second start continues from it.
        seed: Of everything that is made here.
        device: As in `Engine`.
        precision: As in `Engine`.
    """

    profile: Profile
    work: Path
    seed: int = 0
    device: str = "auto"
    precision: str = "32-true"

    @cached_property
    def train(self) -> ImageSet:
        """Training images with labels."""
        return self.profile.images("train")

    @cached_property
    def test(self) -> ImageSet:
        """Test images with labels."""
        return self.profile.images("test")

    def defender_images(self, share: float | None = None) -> ImageSet:
        """The first share of the training images (they are in random order), as a defender has them."""
        count = round(len(self.train) * (share or self.profile.share))
        return self.train.subset(slice(0, count))

    def key(self, name: str, *settings: Any) -> str:
        """A name of what is made here with these settings, with this seed, at this scale, and of nothing else."""
        told = json.dumps([self.profile.name, self.seed, *settings], sort_keys=True, default=str)
        return f"{self.profile.name}-{name}-seed{self.seed}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"

    def engine(self, key: str) -> Engine:
        """An engine whose checkpoints belong to `key`: a job that was cut off goes on where it was.

        What trains with it needs one of its own, see `key`.
        """
        return Engine(
            device=self.device,
            precision=self.precision,
            seed=self.seed,
            checkpoints=self.work / "checkpoints" / key,
            resume=True,
            display=Display(quiet=False),
            channels_last=True,
        )

    def untrained(self, architecture: str | None = None, kind: ModelKind = "encoder") -> Network:
        """A fresh network at this scale."""
        return untrained(
            architecture or self.profile.architecture,
            kind=kind,
            image_size=self.profile.image_size,
            normalization=self.profile.normalization,
            classes=int(self.train.require_labels("the benchmark").max()) + 1,
            seed=self.seed,
        )

    def keep(
        self,
        name: str,
        settings: dict[str, Any],
        make: Callable[[Engine], tuple[Network, Sequence[Trigger]]],
        *,
        architecture: str | None = None,
        kind: ModelKind = "encoder",
    ) -> Subject:
        """A network from the folder, or made now and kept there with its triggers.

        Args:
            name: For people.
            settings: Everything that decides the result, apart from profile and seed.
            make: Trains it.
            architecture: The profile's when left out.
            kind: Of the network.
        """
        key = self.key(name, architecture, kind, settings)
        folder = self.work / "networks" / key
        weights = folder / "weights.safetensors"
        if not weights.is_file():
            network, triggers = make(self.engine(key))
            folder.mkdir(parents=True, exist_ok=True)
            for number, trigger in enumerate(triggers):
                trigger.save(folder / f"trigger{number}")
            (folder / "settings.json").write_text(json.dumps([architecture, kind, settings], default=str))
            partial = folder / "partial.safetensors"
            save_file({name: tensor.contiguous() for name, tensor in network.cpu().state_dict().items()}, partial)
            partial.rename(weights)
        network = self.untrained(architecture, kind)
        network.load_state_dict(load_file(weights))
        specs = sorted(folder.glob("trigger*/trigger.yaml"), key=lambda path: int(path.parent.name[len("trigger") :]))
        return Subject(key, network.eval(), tuple(Trigger.from_yaml(path) for path in specs))

    def evaluator(self, triggers: Sequence[Trigger]) -> EncoderEvaluator:
        """Probe on the training images, judged on the test images."""
        return EncoderEvaluator(probe_data=self.train, test_data=self.test, triggers=triggers)
