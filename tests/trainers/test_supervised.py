"""Supervised training: options change the result, crops equal plain slicing, what does not fit is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from sanitize.data import ImageSet, load_images
from sanitize.data.batches import batches
from sanitize.data.crops import PaddedCrops
from sanitize.errors import ConfigError, DataError
from sanitize.trainers import TRAINERS, Supervised, trainer_named
from sanitize.training import Engine
from tests.classifiers import small_classifier
from tests.encoders import small_encoder

SHORT = {"epochs": 2, "batch_size": 48, "learning_rate": 0.05, "crop_padding": 2}


def images() -> ImageSet:
    return load_images("digits#0:100")


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in network.state_dict().values()])


def trained(seed: int = 0, monitor=None, **options):
    return Supervised(**SHORT | options).train(
        small_classifier(), images(), Engine(device="cpu", seed=seed), monitor=monitor
    )


@pytest.fixture(scope="module")
def reference() -> torch.Tensor:
    return weights(trained().network)


@pytest.mark.parametrize(
    "option",
    [
        {"epochs": 3},
        {"batch_size": 32},
        {"learning_rate": 0.1},
        {"momentum": 0.5},
        {"weight_decay": 0.1},
        {"schedule": "one-cycle"},
        {"crop_padding": 0},
        {"flip": 0.0},
    ],
    ids=lambda option: next(iter(option)),
)
def test_every_option_changes_the_result(option, reference):
    assert not torch.equal(weights(trained(**option).network), reference)


def test_the_table_of_options_is_complete():
    marks = test_every_option_changes_the_result.pytestmark
    assert {key for mark in marks for option in mark.args[1] for key in option} == set(Supervised.model_fields)


def test_same_seed_same_bits_other_seed_other_bits(reference):
    assert torch.equal(weights(trained().network), reference)
    assert not torch.equal(weights(trained(seed=1).network), reference)


def test_a_plain_loop_gives_the_same_network():
    """Without augmentation and at a momentum of zero, the training is SGD with a cosine over all steps."""
    data, expected = images(), small_classifier().train()
    pixels, generator = data.images.float() / 255, Engine(device="cpu").generator("supervised")
    optimizer = SGD(expected.parameters(), lr=0.05)
    for step in range(4):
        if step % 2 == 0:
            order = iter(batches(100, 48, generator, drop_last=True))
        indices = next(order)
        torch.rand((48, 3), generator=generator)  # what the crops draw
        optimizer.param_groups[0]["lr"] = 0.05 * (1 + torch.cos(torch.tensor(torch.pi * step / 4)).item()) / 2
        optimizer.zero_grad()
        cross_entropy(expected(pixels[indices]), data.labels[indices]).backward()
        optimizer.step()
    result = trained(momentum=0.0, weight_decay=0.0, crop_padding=0, flip=0.0).network
    assert torch.allclose(weights(result), weights(expected), atol=1e-5)


def test_only_the_accuracy_of_the_monitor_depends_on_it(reference):
    bank, test = images(), load_images("digits#1400:1500")
    result = trained(monitor=(bank, test))
    assert torch.equal(weights(result.network), reference)
    with torch.inference_mode():
        predicted = result.network(test.images.float() / 255).argmax(dim=1)
    expected = float((predicted == test.labels).float().mean())
    assert result.history["supervised"].epochs[-1]["test_accuracy"] == pytest.approx(expected)


def test_training_on_a_trigger_plants_it_and_the_shared_classifiers_are_what_they_should_be(classifiers):
    engine = Engine(device="cpu")
    clean = classifiers.evaluator.measure(classifiers.clean, engine).metrics
    backdoored = classifiers.evaluator.measure(classifiers.backdoored, engine).metrics
    assert min(clean["clean_accuracy"], backdoored["clean_accuracy"]) >= 0.95
    assert backdoored["attack_success_rate"] >= 0.95
    assert clean["attack_success_rate"] <= 0.02
    data, truth = classifiers.poisoned_data, classifiers.truth
    assert bool((data.labels[truth.poisoned] == 3).all()) and not bool((truth.labels[truth.poisoned] == 3).any())
    assert torch.equal(data.labels[~truth.poisoned], truth.labels[~truth.poisoned])
    shown = classifiers.trigger.apply(load_images("digits#0:1400").images.float() / 255)
    assert torch.equal((shown * 255).round().to(torch.uint8)[truth.poisoned], data.images[truth.poisoned])


def test_an_encoder_is_refused():
    with pytest.raises(ConfigError, match="trains classifiers"):
        Supervised().train(small_encoder(), images(), Engine(device="cpu"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (images().without_labels(), "needs labels"),
        (replace(images(), labels=images().labels + 1), "1 to 10"),
        (replace(images(), labels=images().labels - 1), "-1 to 8"),
        (replace(images(), labels=torch.full((100,), 4)), "the label 4"),
    ],
    ids=["no labels", "too high", "negative", "one class"],
)
def test_labels_that_do_not_fit_are_refused(data, message):
    with pytest.raises(DataError, match=message):
        Supervised().train(small_classifier(), data, Engine(device="cpu"))


def test_a_trainer_is_found_by_its_name():
    assert trainer_named("supervised") is TRAINERS["supervised"] is Supervised
    with pytest.raises(ConfigError, match="Did you mean supervised"):
        trainer_named("supervise")


def test_crops_equal_slices_of_the_padded_image():
    pictures = torch.rand(64, 3, 9, 7, generator=torch.Generator().manual_seed(1))
    crops = PaddedCrops(2, flip=0.5)(pictures, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(pictures, [2] * 4)
    seen = set()
    for crop, source in zip(crops, padded, strict=True):
        found = [
            (top, left, flipped)
            for top in range(5)
            for left in range(5)
            for flipped in (False, True)
            if torch.equal(crop.flip(2) if flipped else crop, source[:, top : top + 9, left : left + 7])
        ]
        assert len(found) == 1
        seen.update(found)
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(5))
    assert {flipped for _, _, flipped in seen} == {False, True}


def test_crops_without_padding_and_flip_change_nothing():
    pictures = torch.rand(4, 3, 8, 8)
    assert torch.equal(PaddedCrops(0, flip=0.0)(pictures, torch.Generator()), pictures)
    assert torch.equal(PaddedCrops(0, flip=1.0)(pictures, torch.Generator()), pictures.flip(3))


@pytest.mark.parametrize("options", [{"padding": -1}, {"flip": 1.5}])
def test_crops_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match="crops"):
        PaddedCrops(**options)
