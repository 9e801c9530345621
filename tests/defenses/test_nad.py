"""NAD beyond the table: attention maps against loops, stages of known networks, and what each option does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sanitize.data import load_images
from sanitize.defenses.fine_tune import FineTune
from sanitize.defenses.nad import NAD
from sanitize.errors import ConfigError, DataError
from sanitize.functional.attention_maps import FeatureMaps, attention_distance, attention_map, stage_names
from sanitize.suspects import untrained
from sanitize.training import Engine
from tests.classifiers import small_classifier

DATA = load_images("digits#0:32")
SHORT = {"teacher_epochs": 1, "epochs": 1, "batch_size": 8}


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in network.state_dict().values()])


def purified(network=None, seed: int = 0, data=DATA, **options):
    return NAD(**SHORT | options).purify(network or small_classifier(), data, Engine(device="cpu", seed=seed))


@pytest.fixture(scope="module")
def reference():
    return purified()


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_an_attention_map_is_that_of_a_loop(power):
    features = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    found = attention_map(features, power=power).view(2, 4, 5)
    for image in range(2):
        expected = torch.zeros(4, 5)
        for row in range(4):
            for column in range(5):
                expected[row, column] = sum(abs(float(value)) ** power for value in features[image, :, row, column])
        torch.testing.assert_close(found[image], expected / expected.norm())


def test_dead_features_have_no_attention():
    assert not attention_map(torch.zeros(1, 3, 2, 2)).any()


def test_the_distance_is_the_papers_beta_term():
    """beta times the mean over images and positions is this distance with weight beta / (H W)."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(4, 3, 8, 8, generator=generator), torch.randn(4, 5, 8, 8, generator=generator)
    paper = 1000 * nn.functional.mse_loss(attention_map(student), attention_map(teacher))
    torch.testing.assert_close(1000 / 64 * attention_distance(student, teacher), paper)


def test_the_distance_is_bounded_and_zero_for_equal_or_scaled_maps():
    left, right = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    left[..., 0, 0], right[..., 1, 1] = 1, 1
    assert attention_distance(left, right).item() == pytest.approx(2.0)
    assert attention_distance(left, 5 * left).item() == pytest.approx(0.0, abs=1e-12)


def test_the_gradient_of_the_distance_pulls_towards_the_teacher():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 4, 4, generator=generator), torch.randn(2, 3, 4, 4, generator=generator)
    student.requires_grad_()
    distance = attention_distance(student, teacher)
    (gradient,) = torch.autograd.grad(distance, student)
    assert attention_distance(student - 0.1 * gradient, teacher) < distance


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("resnet18-cifar", ["layer1", "layer2", "layer3", "layer4"]),
        ("small-cnn", ["features.2", "features.6", "features.10", "features"]),
    ],
)
def test_stages_are_the_last_maps_of_each_resolution(architecture, expected):
    network = untrained(architecture, kind="classifier", image_size=32, classes=10)
    found = stage_names(network, torch.rand(1, 3, 32, 32))
    assert [name.removeprefix("backbone.") for name in found] == expected


def test_hooks_are_removed():
    network = small_classifier()
    with FeatureMaps(network, ["backbone.features"]) as maps:
        network(torch.rand(1, 3, 32, 32))
    kept = maps.last["backbone.features"]
    network(torch.rand(1, 3, 32, 32))
    assert maps.last["backbone.features"] is kept
    purified(network)
    assert not any(module._forward_hooks for module in network.modules())


def test_the_cleaned_network_has_no_hooks(reference):
    assert not any(module._forward_hooks for module in reference.network.modules())


@pytest.mark.parametrize(
    "option",
    [
        {"teacher_epochs": 2},
        {"epochs": 2},
        {"batch_size": 16},
        {"learning_rate": 0.1},
        {"momentum": 0.0},
        {"weight_decay": 0.1},
        {"weights": (0.5, 4.0)},
        {"power": 4.0},
        {"crop_padding": 0},
        {"flip": 0.0},
    ],
    ids=lambda option: next(iter(option)),
)
def test_every_option_changes_the_result(option, reference):
    assert not torch.equal(weights(purified(**option).network), weights(reference.network))


def test_the_table_of_options_is_complete():
    (mark,) = [mark for mark in test_every_option_changes_the_result.pytestmark if mark.name == "parametrize"]
    assert {key for option in mark.args[1] for key in option} == set(NAD.model_fields)


def test_same_seed_same_bits_other_seed_other_bits(reference):
    assert torch.equal(weights(purified().network), weights(reference.network))
    assert not torch.equal(weights(purified(seed=1).network), weights(reference.network))


def test_the_teacher_is_plain_fine_tuning(reference):
    plain = FineTune(epochs=1, batch_size=8, weight_decay=1e-4).purify(
        small_classifier(), DATA, Engine(device="cpu", seed=0)
    )
    assert reference.history["fine-tune"].epochs == plain.history["fine-tune"].epochs
    assert list(reference.history) == ["fine-tune", "nad"]


def test_heavy_weights_bring_the_attention_to_the_teachers(classifiers):
    light, heavy = (
        purified(classifiers.backdoored, weights=(weight,) * 3, teacher_epochs=3, epochs=3) for weight in (0.0, 16.0)
    )
    assert heavy.before == light.before  # the same teacher
    assert heavy.after["attention_distance"] < light.after["attention_distance"] / 2


def test_the_suspect_is_left_unchanged():
    suspect = small_classifier()
    before = weights(suspect)
    purified(suspect)
    assert torch.equal(weights(suspect), before)


def test_more_weights_than_stages_are_refused():
    with pytest.raises(ConfigError, match="small-cnn has 4"):
        purified(weights=(1.0,) * 5)


def test_bad_input_is_refused():
    with pytest.raises(DataError, match="nad needs labels"):
        NAD().check("classifier", DATA.without_labels())
    with pytest.raises(ConfigError, match="works on classifiers"):
        NAD().check("encoder", DATA)
    with pytest.raises(ConfigError, match="weights"):
        NAD(weights=())
    with pytest.raises(ConfigError, match="weights"):
        NAD(weights=(1.0, -1.0))
