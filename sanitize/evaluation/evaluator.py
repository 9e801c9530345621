"""Before and after: one protocol for every network of a kind, so that two of them can be compared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from sanitize.data import DeviceImages, ImageSet, Trigger
from sanitize.errors import DataError
from sanitize.evaluation import success
from sanitize.evaluation.probe import LinearProbe
from sanitize.suspects.networks import Network
from sanitize.training import Engine
from sanitize.types import Metrics, ModelSpec

TRIGGER_METRICS = ("attack_success_rate", "attack_success_rate_all", "base_rate", "poison_accuracy")


@dataclass
class Measurement:
    """What one network does.

    Args:
        metrics: Name -> value in [0, 1], or None.
        unmeasured: Name -> why it is None.
        probe: The head that was fitted on an encoder, or None.
        features: ``clean`` and ``triggered`` outputs (N, D) for the test images, for pictures.
    """

    metrics: Metrics
    unmeasured: dict[str, str]
    probe: LinearProbe | None = None
    features: dict[str, Tensor] = field(default_factory=dict)


class Evaluator(ABC):
    """Measures networks of one kind on labelled data that no defence sees.

    Args:
        test_data: Labelled images that are classified.
        triggers: The attackers' triggers, where they are known; each with a class or ``next`` as its target.

    Raises:
        DataError: Labels are missing, a trigger's target is not among the classes, or all images are of it.
    """

    trigger_metrics: ClassVar[tuple[str, ...]] = TRIGGER_METRICS

    def __init__(self, *, test_data: ImageSet | None, triggers: Sequence[Trigger] = ()) -> None:
        if test_data is not None:
            labels = test_data.require_labels("the evaluation (--test-data)")
            for trigger in triggers:
                _check_target(trigger, labels)
        self.test_data = test_data
        self.triggers = tuple(triggers)

    def check(self, spec: ModelSpec) -> None:
        """Whether such a network can be measured.

        Raises:
            DataError: The test images have another size than those that the network takes.
        """
        if self.test_data is not None and self.test_data.image_size != spec.image_size:
            raise DataError(
                f"the test images have {self.test_data.image_size} px, and the network takes {spec.image_size} px. "
                "Load them with the network's --image-size."
            )

    @property
    def passes(self) -> int:
        """How many images one measurement sends through the network."""
        return 0 if self.test_data is None else len(self.test_data) * (1 + len(self.triggers))

    @abstractmethod
    def measure(self, network: Network, engine: Engine, *, before: Measurement | None = None) -> Measurement:
        """Measure one network.

        Args:
            network: Of this evaluator's kind.
            engine: Device and seed.
            before: What was measured on the suspect, when this is the result: for measures that compare the two.
        """

    def _try_triggers(
        self,
        measurement: Measurement,
        network: Network,
        images: DeviceImages,
        predicted: Tensor,
        predict: Callable[[Tensor], Tensor],
        engine: Engine,
    ) -> None:
        """Add the measures of each trigger; the worst one counts.

        Args:
            measurement: Gets them.
            network: What is measured.
            images: The test images.
            predicted: Classes (N,) of the images without a trigger.
            predict: Outputs of the network (N, D) -> classes (N,).
            engine: Device and seed.
        """
        if not self.triggers or images.labels is None:
            measurement.metrics |= dict.fromkeys(self.trigger_metrics)
            measurement.unmeasured |= dict.fromkeys(self.trigger_metrics, "no trigger is known (--trigger)")
            return
        labels = images.labels.cpu()
        rows = []
        for trigger in self.triggers:
            outputs = _triggered_outputs(network, images, trigger, engine)
            measurement.features.setdefault("triggered", outputs)
            row = _trigger_metrics(predict(outputs), predicted, labels, trigger)
            rows.append(row)
            if len(self.triggers) > 1:
                measurement.metrics |= {f"{name}/{trigger.name}": value for name, value in row.items()}
        worst = max(rows, key=lambda row: row["attack_success_rate"])
        measurement.metrics |= worst


def _check_target(trigger: Trigger, labels: Tensor) -> None:
    classes = int(labels.max()) + 1
    if trigger.target == "next":
        return
    if not isinstance(trigger.target, int) or not 0 <= trigger.target < classes:
        raise DataError(
            f"trigger {trigger.name!r} has target {trigger.target}, and the test data has classes "
            f"0 to {classes - 1}. Set `target` in its specification."
        )
    if bool((labels == trigger.target).all()):
        raise DataError(
            f"every test image is of the target class {trigger.target} of trigger {trigger.name!r}: no success rate "
            "can be measured. Give --test-data with other classes, too."
        )


def _triggered_outputs(network: Network, images: DeviceImages, trigger: Trigger, engine: Engine) -> Tensor:
    generator = engine.generator(f"evaluation/{trigger.name}")

    def pixels(indices: Tensor) -> Tensor:
        return trigger.apply(images.pixels(indices), generator)

    return engine.forward(network, pixels, len(images))


def _trigger_metrics(triggered: Tensor, clean: Tensor, labels: Tensor, trigger: Trigger) -> dict[str, float]:
    target = trigger.target
    assert target is not None  # checked in the constructor
    wanted = success.wanted_classes(labels, target, classes=int(labels.max()) + 1)
    return {
        "attack_success_rate": success.attack_success_rate(triggered, labels, wanted),
        "attack_success_rate_all": success.attack_success_rate_all(triggered, wanted),
        "base_rate": success.base_rate(clean, labels, wanted),
        "poison_accuracy": success.poison_accuracy(triggered, labels),
    }
