"""What a classifier does, by the class of its largest logit."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from sanitize.data import DeviceImages
from sanitize.errors import DataError
from sanitize.evaluation import success
from sanitize.evaluation.evaluator import TRIGGER_METRICS, Evaluator, Measurement
from sanitize.suspects.networks import Network
from sanitize.training import Engine
from sanitize.types import ModelSpec


class ClassifierEvaluator(Evaluator):
    """Measures classifiers on test images.

    Args:
        test_data: Labelled images that are classified.
        triggers: The attackers' triggers, where they are known.

    Raises:
        DataError: Labels are missing, or a trigger's target is not among the classes.

    Example:
        >>> from sanitize.data import load_images
        >>> from sanitize.suspects import untrained
        >>> network = untrained("small-cnn", kind="classifier", image_size=32, classes=10)
        >>> evaluator = ClassifierEvaluator(test_data=load_images("digits#1400:"))
        >>> evaluator.measure(network, Engine(device="cpu")).metrics["attack_success_rate"] is None
        True
    """

    trigger_metrics: ClassVar[tuple[str, ...]] = (*TRIGGER_METRICS, "clean_accuracy_nontarget")

    def check(self, spec: ModelSpec) -> None:
        """Whether such a classifier can be measured.

        Raises:
            DataError: The test images have another size, or labels that the classifier has no logit for.
        """
        super().check(spec)
        if self.test_data is None:
            return
        labels = self.test_data.require_labels("the evaluation (--test-data)")
        if int(labels.max()) >= spec.output_size:
            raise DataError(
                f"the test data {self.test_data.uri} has labels up to {int(labels.max())}, and the classifier has "
                f"{spec.output_size} logits (classes 0 to {spec.output_size - 1}). Check --test-data and --arch."
            )

    def measure(self, network: Network, engine: Engine, *, before: Measurement | None = None) -> Measurement:
        """Measure one classifier; see `Evaluator.measure`. `before` is not needed.

        Raises:
            DataError: See `check`.
        """
        self.check(network.spec)
        if self.test_data is None:
            names = ("clean_accuracy", *self.trigger_metrics)
            reason = "no labelled images for the test were given (--test-data)"
            return Measurement(dict.fromkeys(names), dict.fromkeys(names, reason))
        labels = self.test_data.require_labels("evaluation")
        images = DeviceImages(self.test_data, engine.device)
        logits = engine.forward(network, images.pixels, len(images))
        predicted = _largest(logits)
        measurement = Measurement(
            {"clean_accuracy": success.clean_accuracy(predicted, labels)}, {}, features={"clean": logits}
        )
        self._try_triggers(measurement, network, images, predicted, _largest, engine)
        self._without_target(measurement, predicted, labels)
        return measurement

    def _without_target(self, measurement: Measurement, predicted: Tensor, labels: Tensor) -> None:
        """Accuracy without the target class, which exists where all triggers have the same single target."""
        name, targets = "clean_accuracy_nontarget", {trigger.target for trigger in self.triggers}
        target = next(iter(targets), None)
        if len(targets) == 1 and isinstance(target, int):
            measurement.metrics[name] = success.clean_accuracy_nontarget(predicted, labels, target)
        elif targets:
            measurement.metrics[name] = None
            measurement.unmeasured[name] = "the known triggers have no single target class"


def _largest(logits: Tensor) -> Tensor:
    return logits.argmax(dim=1)
