"""The evaluator of classifiers, on a network whose logits are known: each pixel of the first row is one logit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sanitize.data import ImageSet, PatchTrigger
from sanitize.errors import DataError
from sanitize.evaluation import ClassifierEvaluator
from sanitize.suspects import wrap
from sanitize.training import Engine
from sanitize.types import ModelSpec, Normalization

CLASSES = 4
LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
GUESSES = torch.tensor([0, 1, 1, 1, 2, 1, 3, 0])  # 5 of 8 right


class FirstRow(nn.Module):
    def forward(self, images):
        return images[:, 0, 0, :CLASSES]


def classifier():
    spec = ModelSpec(
        kind="classifier",
        architecture="first-row",
        normalization=Normalization.named("none"),
        image_size=8,
        output_size=CLASSES,
    )
    return wrap(FirstRow(), spec)


def images(guesses=GUESSES, labels=LABELS) -> ImageSet:
    pixels = torch.zeros(len(guesses), 3, 8, 8, dtype=torch.uint8)
    pixels[torch.arange(len(guesses)), :, 0, guesses] = 100
    return ImageSet(images=pixels, labels=labels)


def sends_to(target: int, *, wants=None, name: str = "one") -> PatchTrigger:
    """A white pixel in the first row: every image is classified as `target`."""
    return PatchTrigger(torch.ones(3, 1, 1), position=(0, target), target=target if wants is None else wants, name=name)


def measured(*triggers, data=None):
    evaluator = ClassifierEvaluator(test_data=data or images(), triggers=triggers)
    return evaluator.measure(classifier(), Engine(device="cpu"))


def test_counted_by_hand():
    result = measured(sends_to(1))
    assert result.metrics == pytest.approx(
        {
            "clean_accuracy": 5 / 8,
            "clean_accuracy_nontarget": 3 / 6,
            "attack_success_rate": 1.0,
            "attack_success_rate_all": 1.0,
            "base_rate": 2 / 6,
            "poison_accuracy": 2 / 8,
        }
    )
    assert result.unmeasured == {}


def test_all_to_all_is_counted_over_all_images():
    metrics = measured(sends_to(2, wants="next")).metrics
    assert metrics["attack_success_rate"] == metrics["attack_success_rate_all"] == pytest.approx(2 / 8)
    assert metrics["base_rate"] == pytest.approx(2 / 8)  # a 0 taken for 1, and the last class taken for 0
    assert metrics["poison_accuracy"] == pytest.approx(2 / 8)


def test_accuracy_without_the_target_class_needs_a_single_target():
    for triggers in ([sends_to(2, wants="next")], [sends_to(1), sends_to(2, name="two")]):
        result = measured(*triggers)
        assert result.metrics["clean_accuracy_nontarget"] is None
        assert "single target" in result.unmeasured["clean_accuracy_nontarget"]
    same = measured(sends_to(1), sends_to(1, name="again"))
    assert same.metrics["clean_accuracy_nontarget"] == pytest.approx(3 / 6)


def test_several_triggers_are_shown_each_and_the_worst_counts():
    harmless = PatchTrigger(torch.zeros(3, 1, 1), position=(7, 7), target=3, name="harmless")
    metrics = measured(sends_to(1), harmless).metrics
    assert metrics["attack_success_rate/one"] == metrics["attack_success_rate"] == 1.0
    assert metrics["attack_success_rate/harmless"] == 0.0
    assert metrics["base_rate"] == metrics["base_rate/one"]


def test_what_is_not_given_is_null_with_a_reason():
    nothing = ClassifierEvaluator(test_data=None).measure(classifier(), Engine(device="cpu"))
    assert set(nothing.metrics.values()) == {None}
    assert all("--test-data" in reason and "probe" not in reason for reason in nothing.unmeasured.values())
    no_trigger = measured()
    assert no_trigger.metrics["clean_accuracy"] == pytest.approx(5 / 8)
    nulls = {name for name, value in no_trigger.metrics.items() if value is None}
    assert nulls == set(no_trigger.unmeasured) == set(nothing.metrics) - {"clean_accuracy"}


def test_labels_without_a_logit_are_refused():
    data = images(labels=LABELS + 1)
    with pytest.raises(DataError, match="labels up to 4, and the classifier has 4 logits"):
        measured(data=data)
    assert measured(data=images(labels=LABELS.clamp(max=2))).metrics["clean_accuracy"] < 1  # fewer classes are fine


@pytest.mark.parametrize("wants", [None, 4])
def test_a_target_that_is_no_class_is_refused(wants):
    trigger = PatchTrigger(torch.ones(3, 1, 1), target=wants, name="odd")
    with pytest.raises(DataError, match="'odd' has target"):
        ClassifierEvaluator(test_data=images(), triggers=[trigger])


def test_unlabelled_test_data_is_refused():
    with pytest.raises(DataError, match="--test-data"):
        ClassifierEvaluator(test_data=images().without_labels())
