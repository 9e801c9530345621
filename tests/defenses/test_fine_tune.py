"""Fine-tuning beyond the table: each option changes something, encoders keep no head, what does not fit is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sanitize.data import ImageSet, load_images
from sanitize.defenses import FineTune
from sanitize.errors import DataError
from sanitize.suspects import Classifier, Encoder
from sanitize.training import Engine
from tests.classifiers import small_classifier
from tests.encoders import small_encoder

SHORT = {"epochs": 2, "batch_size": 48}


def images() -> ImageSet:
    return load_images("digits#0:100")


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in network.state_dict().values()])


def purified(network=None, seed: int = 0, **options):
    return FineTune(**SHORT | options).purify(network or small_classifier(), images(), Engine(device="cpu", seed=seed))


@pytest.fixture(scope="module")
def reference() -> torch.Tensor:
    return weights(purified().network)


@pytest.mark.parametrize(
    "option",
    [
        {"epochs": 3},
        {"batch_size": 32},
        {"learning_rate": 0.02},
        {"momentum": 0.5},
        {"weight_decay": 0.1},
        {"crop_padding": 0},
        {"flip": 0.0},
    ],
    ids=lambda option: next(iter(option)),
)
def test_every_option_changes_the_result(option, reference):
    assert not torch.equal(weights(purified(**option).network), reference)


def test_the_table_of_options_is_complete():
    marks = test_every_option_changes_the_result.pytestmark
    assert {key for mark in marks for option in mark.args[1] for key in option} == set(FineTune.model_fields)


@pytest.mark.parametrize("make", [small_classifier, small_encoder])
def test_same_seed_same_bits_other_seed_other_bits(make):
    first = weights(purified(make()).network)
    assert torch.equal(weights(purified(make()).network), first)
    assert not torch.equal(weights(purified(make(), seed=1).network), first)


@pytest.mark.parametrize(("make", "kind"), [(small_classifier, Classifier), (small_encoder, Encoder)])
def test_all_layers_are_trained_the_suspect_is_left_unchanged_and_no_head_stays(make, kind):
    suspect = make()
    before = weights(suspect)
    result = purified(suspect).network
    assert torch.equal(weights(suspect), before)
    assert type(result) is kind
    assert result.state_dict().keys() == suspect.state_dict().keys()
    old = dict(suspect.named_parameters())
    assert all(not torch.equal(value, old[name]) for name, value in result.named_parameters())


def test_the_loss_falls():
    epochs = purified(epochs=4, crop_padding=0, flip=0.0).history["fine-tune"].epochs
    assert epochs[-1]["loss"] < epochs[0]["loss"]


def test_the_similarity_is_that_of_the_outputs_before_and_after():
    suspect, pixels = small_classifier(), images().images.float() / 255
    result = purified(suspect)
    with torch.inference_mode():
        first, second = (output - output.mean(dim=0) for output in (suspect(pixels), result.network(pixels)))
    cosines = [float(a @ b / a.norm() / b.norm()) for a, b in zip(first, second, strict=True)]
    assert result.after["clean_similarity"] == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "needs labels"),
        (images().labels + 1, "1 to 10"),
        (torch.full((100,), 4), "the label 4"),
    ],
    ids=["no labels", "too high", "one class"],
)
def test_labels_that_do_not_fit_are_refused(labels, message):
    with pytest.raises(DataError, match=message):
        FineTune().purify(small_classifier(), replace(images(), labels=labels), Engine(device="cpu"))


def test_an_encoder_takes_any_number_of_classes():
    data = replace(images(), labels=images().labels + 90)
    result = FineTune(**SHORT).purify(small_encoder(), data, Engine(device="cpu"))
    assert result.network.spec.output_size == small_encoder().spec.output_size


def test_too_few_images():
    with pytest.raises(DataError, match="at least 16"):
        FineTune().check("classifier", load_images("digits#0:15"))
