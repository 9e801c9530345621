"""The drill: plant known canaries in copies of the suspect, purify each as the suspect is purified, count survivors."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sanitize.canaries import draw_target, draw_trigger, families, plant
from sanitize.data import ImageSet, Trigger
from sanitize.defenses import Need, Purifier
from sanitize.errors import ConfigError, DataError, TrainingError
from sanitize.evaluation import ClassifierEvaluator, EncoderEvaluator, Evaluator, Measurement
from sanitize.evaluation.removal import (
    SURVIVAL_MARGIN,
    CanaryOutcome,
    DrillResult,
    canaries_needed,
    removal_bound,
)
from sanitize.policies import Policy
from sanitize.suspects import Network
from sanitize.training import Checkpoints, Engine
from sanitize.types import ModelKind

ATTEMPTS = 3
"""How often the same canary is planted, each time longer and with another seed, before it counts as not taken."""
MAXIMUM_PLANTING_LOSS = 0.1
"""A canary whose planting cost more clean accuracy did not take: such a copy is no longer like the suspect."""
MINIMUM_TEST_IMAGES = 100


class Drill:
    """How often does this defence, on this model and with this data, remove a backdoor?

    Canaries of several families with random targets are planted, each in a copy of the suspect of its own, with images
    that the defence does not get. Each copy is purified with the settings and the data of the real purification, and
    a seed of its own. Images that neither planted nor purified tell whether the canary still works.

    Args:
        count: Canaries; families take turns.
        defense: As it purifies the suspect.
        policy: From which success rate on a canary has taken, and the bound that is asked for.

    Raises:
        ConfigError: Fewer than one canary, fewer than the policy's bound takes, or a defence that cannot be drilled.

    Example:
        >>> from sanitize.defenses import FineTune
        >>> Drill(20, FineTune(), Policy(minimum_removal_bound=0.86)).count
        20
    """

    def __init__(self, count: int, defense: Purifier, policy: Policy) -> None:
        if count < 1:
            raise ConfigError(f"--drill {count}: give the number of canaries, 1 or more; 20 are usual.")
        if Need.IMAGES in defense.needs and Need.CLEAN_IMAGES not in defense.needs:
            raise ConfigError(
                f"--drill: {defense.name} works from the poisoned images that the suspect was trained on, and a canary "
                "that is planted in the network is not in them. Leave out --drill, or choose another --method."
            )
        required, best = policy.minimum_removal_bound, removal_bound(count, count)
        if required is not None and best < required:
            raise ConfigError(
                f"--drill {count} can show a removal rate of {best:.1%} at most, and the policy {policy.name} requires "
                f"{required:.1%}: give --drill {canaries_needed(required)} or more."
            )
        self.count = count
        self.defense = defense
        self.policy = policy

    def check(
        self, kind: ModelKind, *, data: ImageSet | None, probe_data: ImageSet | None, test_data: ImageSet | None
    ) -> None:
        """Whether there is what a drill needs.

        Args:
            kind: Of the suspect.
            data: What the defence gets.
            probe_data: Labelled images for the probe of an encoder.
            test_data: Labelled images; one half plants, the other half measures. Those that are in `data`, too, and
                repetitions are left out.

        Raises:
            DataError: Labelled images are missing or too few.
        """
        if test_data is None or (kind == "encoder" and probe_data is None):
            options = "--probe-data and --test-data" if kind == "encoder" else "--test-data"
            raise DataError(f"--drill measures canaries on labelled images: give {options}.")
        labels, unseen = test_data.require_labels("--drill (--test-data)"), _unseen(test_data, data)
        classes = len(set(labels[unseen].tolist()))
        if len(unseen) < MINIMUM_TEST_IMAGES or classes < 2:
            raise DataError(
                "--drill plants canaries with one half of --test-data and measures them on the other: it takes at "
                f"least {MINIMUM_TEST_IMAGES} images of two classes that are not in --data, too; there are "
                f"{len(unseen)} of {classes}."
            )
        self._test_data, self._probe_data = test_data.subset(unseen), probe_data

    def run(
        self, network: Network, data: ImageSet | None, engine: Engine, folder: Path, *, resume: bool
    ) -> DrillResult:
        """Plant, purify, count; `check` comes first.

        Args:
            network: The suspect; left unchanged.
            data: What the defence gets.
            engine: Device, precision and seed; each canary has a seed of its own that follows from it.
            folder: Finished canaries, and a folder for the stages of the one at work.
            resume: Go on with what is in the folder.
        """
        order = torch.randperm(len(self._test_data), generator=engine.generator("drill/split"))
        planting, held_out = (self._test_data.subset(rows) for rows in order.chunk(2))
        scene = _Scene(network, data, planting, held_out, self._probe_data)
        accuracy = _measured(scene.evaluator(()).measure(network, engine), "clean_accuracy")
        finished = Checkpoints(folder, resume=resume)
        turns = families(network.spec.image_size)
        canaries = []
        for number in range(self.count):
            stages = folder / f"canary-{number}"
            saved = finished.load(stages.name)
            if saved is None:
                canary = self._try(turns[number % len(turns)], scene, accuracy, engine, stages, resume=resume)
                finished.save(stages.name, asdict(canary))
                shutil.rmtree(stages, ignore_errors=True)
            else:
                canary = CanaryOutcome(**saved)
            canaries.append(canary)
            engine.display.say(f"Drill: canary {number + 1} of {self.count}, {canary.family}: {canary.outcome}.")
            engine.recorder.metrics("drill", canary.rates, number)
        return DrillResult(tuple(canaries))

    def _try(
        self, family: str, scene: _Scene, accuracy: float, job: Engine, folder: Path, *, resume: bool
    ) -> CanaryOutcome:
        """Plant until the canary has taken, then purify; `accuracy` is the suspect's."""
        generator = job.generator(f"drill/{folder.name}")
        target = draw_target(scene.planting, scene.held_out, generator)
        trigger, words = draw_trigger(family, scene.network.spec.image_size, target, generator)
        evaluator = scene.evaluator([trigger])
        canary = CanaryOutcome(family=family, trigger=words, target=target, attempts=0)
        for attempt in range(1, ATTEMPTS + 1):
            canary = replace(canary, attempts=attempt)
            engine = _own_engine(job, f"drill/{folder.name}/{attempt}", folder / str(attempt), resume=resume)
            try:
                planted = plant(scene.network, scene.planting, trigger, target, engine, attempt=attempt)
            except TrainingError:
                continue  # it diverged
            before = evaluator.measure(planted, engine)
            success = _measured(before, "attack_success_rate")
            canary = replace(canary, planted_success_rate=success)
            taken = (
                success >= self.policy.established_attack_success_rate
                and success - _measured(before, "base_rate") >= SURVIVAL_MARGIN
                and accuracy - _measured(before, "clean_accuracy") <= MAXIMUM_PLANTING_LOSS
            )
            if taken:
                return self._purified(planted, scene.data, evaluator, before, replace(canary, taken=True), engine)
        return canary

    def _purified(
        self,
        planted: Network,
        data: ImageSet | None,
        evaluator: Evaluator,
        before: Measurement,
        canary: CanaryOutcome,
        engine: Engine,
    ) -> CanaryOutcome:
        try:
            purified = self.defense.purify(planted, data, engine)
        except (TrainingError, DataError) as error:  # of this copy: the real purification may well succeed
            return replace(canary, stopped=str(error))
        after = evaluator.measure(purified.network, engine)
        return replace(
            canary,
            success_rate=_measured(after, "attack_success_rate"),
            base_rate=_measured(after, "base_rate"),
            clean_accuracy_loss=_measured(before, "clean_accuracy") - _measured(after, "clean_accuracy"),
            stopped=purified.destroyed,
        )


@dataclass(frozen=True)
class _Scene:
    """What all canaries of a drill share."""

    network: Network
    data: ImageSet | None
    planting: ImageSet
    held_out: ImageSet
    probe_data: ImageSet | None

    def evaluator(self, triggers: Sequence[Trigger]) -> Evaluator:
        if self.network.spec.kind == "classifier":
            return ClassifierEvaluator(test_data=self.held_out, triggers=triggers)
        return EncoderEvaluator(probe_data=self.probe_data, test_data=self.held_out, triggers=triggers)


def _measured(measurement: Measurement, name: str) -> float:
    value = measurement.metrics[name]
    assert value is not None  # labels and, where it takes one, a trigger are there
    return value


def _own_engine(engine: Engine, purpose: str, checkpoints: Path, *, resume: bool) -> Engine:
    """Like the job's, but with a seed and a folder of its own, and silent towards MLflow."""
    return Engine(
        device=engine.device.type,
        precision=engine.settings["precision"],
        strategy=engine.settings["strategy"],
        seed=engine.generator(purpose).initial_seed() % 2**31,
        checkpoints=checkpoints,
        resume=resume,
        display=engine.display,
    )


def _unseen(test_data: ImageSet, data: ImageSet | None) -> Tensor:
    """Rows of the test data, each image once, without those that the defence gets."""
    seen = set() if data is None else {_digest(image) for image in data.images}
    rows = []
    for row, image in enumerate(test_data.images):
        if (digest := _digest(image)) not in seen:
            seen.add(digest)
            rows.append(row)
    return torch.tensor(rows, dtype=torch.int64)


def _digest(image: Tensor) -> bytes:
    return hashlib.blake2b(image.contiguous().numpy().tobytes(), digest_size=16).digest()
