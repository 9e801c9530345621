"""Before and after: one protocol for every encoder, so that two of them can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sanitize.data import DeviceImages, ImageSet, Trigger
from sanitize.errors import DataError
from sanitize.evaluation import success
from sanitize.evaluation.probe import LinearProbe, knn_accuracy
from sanitize.suspects.networks import Network
from sanitize.training import Engine
from sanitize.types import Metrics

LABELLED_METRICS = ("clean_accuracy", "knn_accuracy", "clean_accuracy_old_head")
TRIGGER_METRICS = ("attack_success_rate", "attack_success_rate_all", "base_rate", "poison_accuracy")
KNN_TEMPERATURE = 0.1


@dataclass
class Measurement:
    """What one encoder does.

    Args:
        metrics: Name -> value in [0, 1], or None.
        unmeasured: Name -> why it is None.
        probe: The head that was fitted, or None without labels.
        features: ``clean`` and ``triggered`` test features (N, D), for pictures.
    """

    metrics: Metrics
    unmeasured: dict[str, str]
    probe: LinearProbe | None = None
    features: dict[str, Tensor] = field(default_factory=dict)


class EncoderEvaluator:
    """Measures encoders on labelled data that no defence sees.

    Args:
        probe_data: Labelled images that the probe and the neighbours are taken from.
        test_data: Labelled images that are classified.
        triggers: The attackers' triggers, where they are known.

    Raises:
        DataError: Labels are missing, or a trigger's target is not among the classes.
    """

    def __init__(
        self, *, probe_data: ImageSet | None, test_data: ImageSet | None, triggers: Sequence[Trigger] = ()
    ) -> None:
        if probe_data is not None:
            probe_data.require_labels("the linear probe (--probe-data)")
        if test_data is not None:
            classes = int(test_data.require_labels("the evaluation (--test-data)").max()) + 1
            for trigger in triggers:
                if not isinstance(trigger.target, int) or not 0 <= trigger.target < classes:
                    raise DataError(
                        f"trigger {trigger.name!r} has target {trigger.target}, and the test data has classes "
                        f"0 to {classes - 1}. Set `target` in its specification."
                    )
        self.probe_data = probe_data
        self.test_data = test_data
        self.triggers = tuple(triggers)

    def measure(
        self,
        network: Network,
        engine: Engine,
        *,
        old_head: LinearProbe | None = None,
        suspect_head: tuple[Tensor, Tensor] | None = None,
    ) -> Measurement:
        """Measure one encoder with a probe of its own.

        Args:
            network: The encoder.
            engine: Device and seed.
            old_head: A probe fitted on another encoder's features, to be shown beside the new one.
            suspect_head: Weight (C, D) and bias (C,) of the linear head that came with the suspect; tried where its
                classes are as many as those of the test data.
        """
        if self.probe_data is None or self.test_data is None:
            reason = "no labelled images for the probe and the test were given (--probe-data, --test-data)"
            names = (*LABELLED_METRICS, *TRIGGER_METRICS)
            return Measurement(dict.fromkeys(names), dict.fromkeys(names, reason))
        labels, bank_labels = self.test_data.require_labels("evaluation"), self.probe_data.require_labels("the probe")
        images = DeviceImages(self.test_data, engine.device)
        bank_images = DeviceImages(self.probe_data, engine.device)
        bank = engine.forward(network, bank_images.pixels, len(bank_images))
        clean = engine.forward(network, images.pixels, len(images))
        probe = LinearProbe.fit(bank, bank_labels)
        predicted = probe.predict(clean)
        metrics: Metrics = {
            "clean_accuracy": success.clean_accuracy(predicted, labels),
            "knn_accuracy": knn_accuracy(clean, labels, bank, bank_labels, temperature=KNN_TEMPERATURE),
            "clean_accuracy_old_head": success.clean_accuracy((old_head or probe).predict(clean), labels),
        }
        if suspect_head is not None and len(suspect_head[0]) == int(labels.max()) + 1:
            logits = torch.nn.functional.linear(clean, *suspect_head)
            metrics["suspect_head_accuracy"] = success.clean_accuracy(logits.argmax(dim=1), labels)
        measurement = Measurement(metrics, {}, probe, {"clean": clean})
        if not self.triggers:
            metrics |= dict.fromkeys(TRIGGER_METRICS)
            measurement.unmeasured = dict.fromkeys(TRIGGER_METRICS, "no trigger is known (--trigger)")
            return measurement
        rows = []
        for trigger in self.triggers:
            shown = self._triggered_features(network, images, trigger, engine)
            measurement.features.setdefault("triggered", shown)
            row = _trigger_metrics(probe.predict(shown), predicted, labels, trigger)
            rows.append(row)
            if len(self.triggers) > 1:
                metrics |= {f"{name}/{trigger.name}": value for name, value in row.items()}
        worst = max(rows, key=lambda row: row["attack_success_rate"])
        metrics |= worst
        return measurement

    @staticmethod
    def _triggered_features(network: Network, images: DeviceImages, trigger: Trigger, engine: Engine) -> Tensor:
        generator = engine.generator(f"evaluation/{trigger.name}")

        def pixels(indices: Tensor) -> Tensor:
            return trigger.apply(images.pixels(indices), generator)

        return engine.forward(network, pixels, len(images))


def _trigger_metrics(triggered: Tensor, clean: Tensor, labels: Tensor, trigger: Trigger) -> dict[str, float]:
    target = trigger.target
    assert isinstance(target, int)  # checked in the constructor
    return {
        "attack_success_rate": success.attack_success_rate(triggered, labels, target),
        "attack_success_rate_all": success.attack_success_rate_all(triggered, target),
        "base_rate": success.base_rate(clean, labels, target),
        "poison_accuracy": success.poison_accuracy(triggered, labels),
    }
