"""D-ST: its losses against slow loops, what is trusted, options, resuming, bad input, and BadNets on digits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sanitize.data import ImageSet, load_images
from sanitize.errors import ConfigError, DataError
from sanitize.functional.semi_supervised import mixed_cross_entropy, positive_pairs, semi_supervised_contrast
from sanitize.suspects import Network, untrained
from sanitize.trainers import DST, Trained
from sanitize.training import Engine, NullRecorder
from tests.classifiers import small_classifier
from tests.encoders import small_encoder
from tests.test_docs import ROOT, table

QUICK: dict[str, Any] = {
    "split_epochs": 1, "split_batch_size": 32, "epochs": 2, "batch_size": 32, "classifier_epochs": 2,
    "classifier_batch_size": 16, "learning_rate": 0.1, "flip": 0.3, "draws": 2, "clean_share": 0.4,
}  # fmt: skip


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return load_images("digits#0:100", image_size=16)


def classifier(seed: int = 0) -> Network:
    return untrained("small-cnn", kind="classifier", image_size=16, normalization="half", classes=10, seed=seed)


def weights(module: nn.Module) -> Tensor:
    return torch.cat([value.flatten().double() for value in module.state_dict().values()])


def trained(data: ImageSet, engine: Engine | None = None, **options: Any) -> Trained:
    return DST(**(QUICK | options)).train(classifier(), data, engine or Engine(device="cpu"))


# ---------------------------------------------------------------------------------------------------------- contrast


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    first, second = torch.randn(2, 7, 5, dtype=torch.float64, generator=rng())
    labels = torch.tensor([0, 0, 0, 1, 1, 0, 2])
    clean = torch.tensor([True, True, False, True, True, False, True])
    return first, second, labels, clean


def slow_contrast(
    first: Tensor, second: Tensor, labels: Tensor, clean: Tensor, temperature: float, pairs: Any
) -> float:
    """As papers write it: a loop over anchors and their positives."""
    views = [z / z.norm() for z in (*first, *second)]
    count, total = len(first), 0.0
    for a in range(2 * count):
        others = [b for b in range(2 * count) if b != a]
        denominator = sum(float(torch.exp(views[a] @ views[b] / temperature)) for b in others)
        positives = [b for b in others if b % count == a % count or pairs(a % count, b % count)]
        terms = [float(torch.log(torch.exp(views[a] @ views[p] / temperature) / denominator)) for p in positives]
        total -= sum(terms) / len(terms)
    return total / (2 * count) * temperature / 0.07


RULES = {
    "strict": lambda same, i, j: same and i and j,
    "published": lambda same, i, j: same and i,
    "own": lambda same, i, j: False,
    "labels": lambda same, i, j: same,
}


@pytest.mark.parametrize("positives", RULES)
def test_the_contrast_equals_a_slow_loop(positives):
    first, second, labels, clean = batch()
    expected = slow_contrast(
        first, second, labels, clean, 0.2,
        lambda i, j: RULES[positives](bool(labels[i] == labels[j]), bool(clean[i]), bool(clean[j])),
    )  # fmt: skip
    found = semi_supervised_contrast(first, second, labels, clean, temperature=0.2, positives=positives)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_a_clean_image_has_no_poisoned_positive_unless_the_published_form_is_asked_for():
    _, _, labels, clean = batch()
    strict, published = (positive_pairs(labels, clean, form) for form in ("strict", "published"))
    assert not strict[clean][:, ~clean].any()
    assert published[0, 2] and published[0, 5] and not strict[0, 2]
    for pairs in (strict, published):  # labels of the others are not used
        assert torch.equal(pairs[~clean], torch.eye(7, dtype=torch.bool)[~clean])


def test_the_gradient_of_the_contrast_draws_positives_together():
    first, second, labels, clean = batch()
    first.requires_grad_()
    semi_supervised_contrast(first, second, labels, clean, temperature=0.5).backward()
    moved = first.detach() - 0.05 * first.grad
    similarity = torch.nn.functional.cosine_similarity
    assert float(similarity(moved, second).mean()) > float(similarity(first.detach(), second).mean())
    assert torch.isfinite(first.grad).all()
    for value in (first, second):  # lengths play no part
        assert semi_supervised_contrast(3 * value, value, labels, clean, temperature=0.5) >= 0
    doubled = semi_supervised_contrast(2 * first, 5 * second, labels, clean, temperature=0.5)
    assert torch.allclose(doubled, semi_supervised_contrast(first, second, labels, clean, temperature=0.5))


# ------------------------------------------------------------------------------------------------- mixed cross-entropy


def test_the_mixed_cross_entropy_lowers_one_group_and_raises_the_other():
    logits, labels = torch.randn(6, 3, generator=rng()), torch.tensor([0, 1, 2, 0, 1, 2])
    poisoned = torch.tensor([False, True, False, False, True, False])
    logits.requires_grad_()
    loss = mixed_cross_entropy(logits, labels, poisoned, weight=0.1)
    expected = cross_entropy(logits[~poisoned], labels[~poisoned]) - 0.1 * cross_entropy(
        logits[poisoned], labels[poisoned]
    )
    assert torch.allclose(loss, expected)
    loss.backward()
    of_label = logits.grad[torch.arange(6), labels]
    assert (of_label[~poisoned] < 0).all() and (of_label[poisoned] > 0).all()


@pytest.mark.parametrize("poisoned", [True, False])
def test_a_missing_group_counts_nothing(poisoned):
    logits, labels = torch.randn(4, 3, generator=rng()), torch.tensor([0, 1, 2, 0])
    group = torch.full((4,), poisoned)
    loss = mixed_cross_entropy(logits, labels, group, weight=0.5)
    plain = cross_entropy(logits, labels)
    assert torch.allclose(loss, -0.5 * plain if poisoned else plain)


# -------------------------------------------------------------------------------------------------------- the training


@pytest.fixture(scope="module")
def reference(images) -> Tensor:
    return weights(trained(images).network)


@pytest.mark.parametrize(
    "option",
    [
        {"split_epochs": 2},
        {"split_batch_size": 16},
        {"split_learning_rate": 0.1},
        {"draws": 1},
        {"decision": "auto"},
        {"clean_share": 0.3},
        {"poisoned_share": 0.2},
        {"per_class": False},
        {"positives": "published"},
        {"positives": "own"},
        {"positives": "labels"},
        {"epochs": 3},
        {"batch_size": 24},
        {"learning_rate": 0.2},
        {"momentum": 0.5},
        {"weight_decay": 0.1},
        {"warmup_epochs": 0},
        {"temperature": 0.5},
        {"dimensions": 64},
        {"min_crop_scale": 0.8},
        {"jitter": 0.1},
        {"grey": 0.9},
        {"flip": 0.0},
        {"classifier_epochs": 3},
        {"classifier_batch_size": 8},
        {"classifier_learning_rate": 1.0},
        {"poison_weight": 0.1},
    ],
    ids=lambda option: "-".join(map(str, next(iter(option.items())))),
)
def test_every_option_changes_the_result(option, images, reference):
    assert not torch.equal(weights(trained(images, **option).network), reference)


def test_the_table_of_options_is_complete():
    marks = test_every_option_changes_the_result.pytestmark
    assert {key for mark in marks for option in mark.args[1] for key in option} == set(DST.model_fields)


def test_same_seed_same_bits_other_seed_other_bits(images, reference):
    assert torch.equal(weights(trained(images).network), reference)
    assert not torch.equal(weights(trained(images, Engine(device="cpu", seed=1)).network), reference)


def test_the_extractor_stands_still_while_the_classifier_is_trained(images):
    short = trained(images, classifier_epochs=1).network
    network = trained(images, classifier_epochs=4).network
    head = {"backbone.fc.weight", "backbone.fc.bias"} & set(network.state_dict())
    assert head
    for name, value in network.state_dict().items():
        assert torch.equal(value, short.state_dict()[name]) == (name not in head), name


def test_labels_of_images_that_are_not_called_clean_do_not_reach_the_features():
    first, second, labels, clean = batch()
    wrong = torch.where(clean, labels, (labels + 1) % 3)
    for form in ("strict", "own"):
        one, other = (
            semi_supervised_contrast(first, second, given, clean, temperature=0.1, positives=form)
            for given in (labels, wrong)
        )
        assert torch.equal(one, other)


def test_what_is_trusted_is_told(images):
    result = trained(images)
    filtering = result.filterings["split"]
    labels = images.require_labels("the test")
    assert set(result.metrics) == {"clean_images", "uncertain_images", "poisoned_images"}
    assert sum(result.metrics.values()) == 100 and result.metrics["poisoned_images"] == 5
    assert int(filtering.trusted.sum()) == result.metrics["clean_images"]
    for label in range(10):
        own = labels == label
        assert filtering.trusted[own].any()
        assert filtering.losses[own & filtering.trusted].max() <= filtering.losses[own & ~filtering.trusted].min()
    assert [finding.rule for finding in result.findings] == ["d-st-split"]


def test_a_class_without_clean_images_is_named(images):
    rules = [finding.rule for finding in trained(images, per_class=False, clean_share=0.03).findings]
    assert rules == ["d-st-missing-class", "d-st-split"]


class _Killed(Exception):
    pass


class _Killer(NullRecorder):
    def __init__(self, stage: str) -> None:
        self.stage_to_die_in = stage

    def metrics(self, stage: str, values: dict[str, float], epoch: int) -> None:
        if stage == self.stage_to_die_in and epoch == 1:
            raise _Killed


@pytest.mark.parametrize("stage", ["extractor", "classifier"])
def test_an_interrupted_training_resumes_to_the_same_bits(stage, images, reference, tmp_path):
    with pytest.raises(_Killed):
        trained(images, Engine(device="cpu", checkpoints=tmp_path, recorder=_Killer(stage)))
    resumed = trained(images, Engine(device="cpu", checkpoints=tmp_path, resume=True))
    assert torch.equal(weights(resumed.network), reference)


def test_only_the_accuracy_of_the_monitor_depends_on_it(images, reference):
    test = load_images("digits#1400:1500", image_size=16)
    result = DST(**QUICK).train(classifier(), images, Engine(device="cpu"), monitor=(images, test))
    assert torch.equal(weights(result.network), reference)
    with torch.inference_mode():
        predicted = result.network(test.images.float() / 255).argmax(dim=1)
    expected = float((predicted == test.labels).float().mean())
    assert result.history["classifier"].epochs[-1]["test_accuracy"] == pytest.approx(expected)


# ------------------------------------------------------------------------------------------------------------ bad input


def test_an_encoder_is_refused(images):
    with pytest.raises(ConfigError, match="trains classifiers"):
        DST().train(small_encoder(), images, Engine(device="cpu"))


def test_an_architecture_without_a_linear_head_is_refused():
    network = untrained("squeezenet1_1", kind="classifier", image_size=32, normalization="half", classes=10)
    with pytest.raises(ConfigError, match="no linear head"):
        DST(**QUICK).train(network, load_images("digits#0:100"), Engine(device="cpu"))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda data: data.without_labels(), {}, "needs labels"),
        (lambda data: replace(data, labels=data.labels + 1), {}, "1 to 10"),
        (lambda data: replace(data, labels=torch.full((100,), 4)), {}, "the label 4"),
        (lambda data: data, {"batch_size": 128}, "do not fill one batch of 128"),
        (lambda data: data, {"clean_share": 0.01}, "of 0 class"),
        (lambda data: load_images("digits#0:100"), {}, "32 px"),
    ],
    ids=["no labels", "too high", "one class", "too few", "nothing is clean", "size"],
)
def test_data_that_do_not_fit_are_refused(change, options, message, images):
    with pytest.raises(DataError, match=message):
        trained(change(images), **options)


@pytest.mark.parametrize("option", [{"poison_weight": 0.5}, {"temperature": 0}, {"positives": "all"}])
def test_values_out_of_range_are_refused(option):
    with pytest.raises(ConfigError, match=next(iter(option))):
        DST(**option)


# ------------------------------------------------------------------------------------------------------------- BadNets


@pytest.mark.slow
def test_a_classifier_trained_on_poisoned_digits_has_no_backdoor(classifiers):
    engine = Engine(device="cpu", channels_last=True)
    trainer = DST(
        split_epochs=6, split_learning_rate=0.1, clean_share=0.3, epochs=12, batch_size=64, learning_rate=0.1,
        min_crop_scale=0.5, grey=0.0, flip=0.0,
    )  # fmt: skip
    result = trainer.train(small_classifier(), classifiers.poisoned_data, engine)
    measured = classifiers.evaluator.measure(result.network, engine).metrics
    assert measured["attack_success_rate"] <= 0.08  # seeds 0, 1, 2: 0.014, 0.014, 0.034; 1.0 without
    assert measured["clean_accuracy"] >= 0.85
    trusted, poisoned = result.filterings["split"].trusted, classifiers.truth.poisoned
    assert float(poisoned[trusted].float().mean()) <= 0.04 < float(poisoned.float().mean())


def test_the_documented_parameters_are_those_of_the_code():
    assert table(ROOT / "docs/methods/d-st.md", "parameter") == [
        [f"`{name}`", str(item["value"]), str(item["paper"]), item["description"]]
        for name, item in DST().parameters().items()
    ]
