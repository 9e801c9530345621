"""What an encoder does, seen through a linear probe and through nearest neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from sanitize.data import DeviceImages, ImageSet, Trigger
from sanitize.evaluation import success
from sanitize.evaluation.evaluator import Evaluator, Measurement
from sanitize.evaluation.probe import LinearProbe, knn_accuracy
from sanitize.suspects.networks import Network
from sanitize.training import Engine
from sanitize.types import Metrics

KNN_TEMPERATURE = 0.1


class EncoderEvaluator(Evaluator):
    """Measures encoders, each with a probe of its own.

    Args:
        probe_data: Labelled images that the probe and the neighbours are taken from.
        test_data: Labelled images that are classified.
        triggers: The attackers' triggers, where they are known.
        suspect_head: Weight (C, D) and bias (C,) of the linear head that came with the suspect; tried where its
            classes are as many as those of the test data.

    Raises:
        DataError: Labels are missing, or a trigger's target is not among the classes.
    """

    labelled_metrics: ClassVar[tuple[str, ...]] = ("clean_accuracy", "knn_accuracy", "clean_accuracy_old_head")

    def __init__(
        self,
        *,
        probe_data: ImageSet | None,
        test_data: ImageSet | None,
        triggers: Sequence[Trigger] = (),
        suspect_head: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__(test_data=test_data, triggers=triggers)
        if probe_data is not None:
            probe_data.require_labels("the linear probe (--probe-data)")
        self.probe_data = probe_data
        self.suspect_head = suspect_head

    @property
    def passes(self) -> int:
        """How many images one measurement sends through the encoder, those of the probe included."""
        return 0 if self.probe_data is None or self.test_data is None else len(self.probe_data) + super().passes

    def measure(self, network: Network, engine: Engine, *, before: Measurement | None = None) -> Measurement:
        """Measure one encoder; see `Evaluator.measure`. The suspect's probe is tried on the result, too."""
        self.check(network.spec)
        if self.probe_data is None or self.test_data is None:
            reason = "no labelled images for the probe and the test were given (--probe-data, --test-data)"
            names = (*self.labelled_metrics, *self.trigger_metrics)
            return Measurement(dict.fromkeys(names), dict.fromkeys(names, reason))
        labels, bank_labels = self.test_data.require_labels("evaluation"), self.probe_data.require_labels("the probe")
        images = DeviceImages(self.test_data, engine.device)
        bank_images = DeviceImages(self.probe_data, engine.device)
        bank = engine.forward(network, bank_images.pixels, len(bank_images))
        clean = engine.forward(network, images.pixels, len(images))
        probe = LinearProbe.fit(bank, bank_labels)
        old_probe = before.probe if before is not None and before.probe is not None else probe
        predicted = probe.predict(clean)
        metrics: Metrics = {
            "clean_accuracy": success.clean_accuracy(predicted, labels),
            "knn_accuracy": knn_accuracy(clean, labels, bank, bank_labels, temperature=KNN_TEMPERATURE),
            "clean_accuracy_old_head": success.clean_accuracy(old_probe.predict(clean), labels),
        }
        if self.suspect_head is not None and len(self.suspect_head[0]) == int(labels.max()) + 1:
            logits = torch.nn.functional.linear(clean, *self.suspect_head)
            metrics["suspect_head_accuracy"] = success.clean_accuracy(logits.argmax(dim=1), labels)
        measurement = Measurement(metrics, {}, probe, {"clean": clean})
        self._try_triggers(measurement, network, images, predicted, probe.predict, engine)
        return measurement
