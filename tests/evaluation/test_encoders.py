"""The evaluator of encoders: what is given is measured, what is not is null with a reason."""

from __future__ import annotations

import pytest
import torch

from sanitize.data import PatchTrigger, load_images
from sanitize.errors import DataError
from sanitize.evaluation import EncoderEvaluator
from sanitize.training import Engine
from tests.encoders import small_encoder, test_images, train_images

PATCH = PatchTrigger(patch=torch.ones(3, 4, 4), target=3, name="white")


def measured(triggers=(), seed: int = 0, before=None, **options):
    evaluator = EncoderEvaluator(probe_data=train_images(), test_data=test_images(), triggers=triggers, **options)
    return evaluator.measure(small_encoder(seed), Engine(device="cpu"), before=before)


def test_without_data_everything_is_null_with_a_reason():
    result = EncoderEvaluator(probe_data=None, test_data=None).measure(small_encoder(), Engine(device="cpu"))
    assert set(result.metrics.values()) == {None}
    assert set(result.unmeasured) == set(result.metrics)


def test_without_a_trigger_success_rates_are_null_with_a_reason():
    result = measured()
    assert result.metrics["clean_accuracy"] > 0.5
    assert result.metrics["attack_success_rate"] is None
    assert "--trigger" in result.unmeasured["attack_success_rate"]


def test_several_triggers_are_shown_each_and_the_worst_counts():
    other = PatchTrigger(patch=torch.zeros(3, 16, 16), target=5, name="black")
    metrics = measured([PATCH, other]).metrics
    rates = [metrics["attack_success_rate/white"], metrics["attack_success_rate/black"]]
    assert metrics["attack_success_rate"] == max(rates)


def test_all_to_all_counts_each_images_next_class():
    trigger = PatchTrigger(patch=torch.ones(3, 4, 4), target="next", position="bottom-right", name="all")
    result, labels = measured([trigger]), test_images().labels
    predicted = result.probe.predict(result.features["triggered"])
    hits = [int(guess) == (int(label) + 1) % 10 for guess, label in zip(predicted, labels, strict=True)]
    assert result.metrics["attack_success_rate"] == pytest.approx(sum(hits) / len(hits))
    assert result.metrics["attack_success_rate_all"] == result.metrics["attack_success_rate"]


def test_the_probe_of_another_encoder_is_tried_too():
    before = measured()
    assert before.metrics["clean_accuracy_old_head"] == before.metrics["clean_accuracy"]
    after = measured(seed=1, before=before)
    expected = float((before.probe.predict(after.features["clean"]) == test_images().labels).float().mean())
    assert after.metrics["clean_accuracy_old_head"] == pytest.approx(expected)
    assert after.metrics["clean_accuracy_old_head"] < after.metrics["clean_accuracy"]


def test_a_head_of_the_suspect_is_tried_where_its_classes_fit():
    features = measured().features["clean"]
    fitting = (torch.randn(10, features.shape[1]), torch.zeros(10))
    expected = float((features @ fitting[0].T).argmax(dim=1).eq(test_images().labels).float().mean())
    assert measured(suspect_head=fitting).metrics["suspect_head_accuracy"] == pytest.approx(expected)
    other = (torch.randn(1000, features.shape[1]), torch.zeros(1000))
    assert "suspect_head_accuracy" not in measured(suspect_head=other).metrics


@pytest.mark.parametrize("target", [None, 10])
def test_a_target_that_is_no_class_is_refused(target):
    with pytest.raises(DataError, match="target"):
        EncoderEvaluator(
            probe_data=train_images(),
            test_data=test_images(),
            triggers=[PatchTrigger(patch=torch.ones(3, 4, 4), target=target, name="odd")],
        )


def test_test_images_of_the_target_class_only_are_refused():
    data = test_images()
    with pytest.raises(DataError, match="every test image is of the target class 3"):
        EncoderEvaluator(probe_data=None, test_data=data.subset(data.labels == 3), triggers=[PATCH])


def test_unlabelled_probe_data_is_refused():
    with pytest.raises(DataError, match="--probe-data"):
        EncoderEvaluator(probe_data=train_images().without_labels(), test_data=test_images())


def test_images_of_another_size_are_refused():
    evaluator = EncoderEvaluator(probe_data=None, test_data=load_images("digits#1400:", image_size=16))
    with pytest.raises(DataError, match="16 px"):
        evaluator.check(small_encoder().spec)
