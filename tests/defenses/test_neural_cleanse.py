"""Neural Cleanse beyond the table: a planted shortcut is found, its absence too, and what each option does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from sanitize.data import load_images
from sanitize.defenses.neural_cleanse import NeuralCleanse
from sanitize.detection.inversion import Inverted
from sanitize.errors import ConfigError, DataError
from sanitize.suspects import Classifier
from sanitize.training import Engine, History
from sanitize.types import ModelSpec, Normalization
from tests.classifiers import small_classifier

DATA = load_images("digits#0:40")
SHORT = {"steps": 12, "batch_size": 16, "repeats": 1, "success": 0.5, "patience": 2}
UNLEARN = SHORT | {"threshold": 0.01, "unlearn_epochs": 1}  # something always stands out so


class Corner(nn.Module):
    """Classes are told apart by the brightness of large fields; class 1 also by one bright pixel in a corner."""

    def __init__(self, classes: int = 6) -> None:
        super().__init__()
        weight = torch.zeros(classes, 3, 16, 16)
        for number in range(classes):
            weight[number, :, 2 * number + 2 : 2 * number + 4, 2 : 14 - number] = 0.02
        weight[1, :, 0, 0] = 1.0
        self.weight = nn.Parameter(weight.flatten(start_dim=1))

    def forward(self, images):
        return 10 * nn.functional.linear(images.flatten(start_dim=1), self.weight)


def corner(classes: int = 6) -> Classifier:
    spec = ModelSpec(
        kind="classifier",
        architecture="own",
        normalization=Normalization.named("none"),
        image_size=16,
        output_size=classes,
    )
    return Classifier(Corner(classes), spec).eval()


def corner_data(classes: int = 6):
    images = torch.randint(40, (48, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(48) % classes
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 2 * label + 2 : 2 * label + 4, 2 : 14 - label] += 180
    images[:, :, 0, 0] = 0
    return replace(load_images("digits#0:48"), images=images, labels=labels)


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in network.state_dict().values()])


def purified(network=None, seed: int = 0, data=DATA, **options):
    return NeuralCleanse(**options).purify(network or small_classifier(), data, Engine(device="cpu", seed=seed))


@pytest.fixture(scope="module")
def reference():
    return purified(**UNLEARN)


def test_a_shortcut_of_one_pixel_is_found_drawn_and_unlearned():
    method = NeuralCleanse(steps=400, batch_size=32, repeats=2, unlearn_epochs=20, unlearn_rate=0.1)
    suspect = corner()
    evidence = method.examine(suspect, corner_data(), Engine(device="cpu"))
    assert evidence.suspected == (1,)
    assert evidence.metrics["anomaly_index_low"] > 2
    assert evidence.metrics["anomaly_index_low"] <= evidence.metrics["anomaly_index"]
    assert evidence.metrics["anomaly_index"] <= evidence.metrics["anomaly_index_high"]
    picture = evidence.pictures["inverted-trigger-1"].sum(dim=0)
    assert divmod(int(picture.argmax()), 16) == (0, 0)
    result = method.purify(suspect, corner_data(), Engine(device="cpu"))
    assert result.before["inverted_trigger_success"] > 0.8
    assert result.after["inverted_trigger_success"] < result.before["inverted_trigger_success"] - 0.3
    assert result.findings[0].rule == "neural-cleanse-small-trigger"


def test_where_nothing_stands_out_the_network_comes_back_as_it_was():
    suspect = small_classifier()
    result = purified(suspect, **SHORT, threshold=1000.0)
    assert torch.equal(weights(result.network), weights(suspect))
    assert result.after["inverted_trigger_success"] is None
    assert result.findings[0].rule == "neural-cleanse-nothing-found"
    assert list(result.history) == ["invert"]


def test_fewer_than_four_classes_have_no_index():
    evidence = NeuralCleanse(**SHORT).examine(corner(3), corner_data(3), Engine(device="cpu"))
    assert evidence.metrics["anomaly_index"] is None
    assert "4 classes or more" in evidence.unmeasured["anomaly_index"]
    assert evidence.suspected == ()


def test_no_trigger_found_is_none_and_never_zero():
    nothing = Inverted(torch.zeros(10, 1, 4, 4), torch.zeros(10, 3, 4, 4), torch.full((10,), torch.nan), History())
    evidence = NeuralCleanse(repeats=1)._evidence(nothing, 10)
    assert evidence.metrics["smallest_trigger"] is None
    assert evidence.metrics["anomaly_index"] is None
    assert evidence.metrics["classes_without_trigger"] == 10
    assert evidence.suspected == ()


def test_classes_that_no_trigger_reaches_are_left_out():
    """A mask that hides the image sends all images to one class, so that one is reached in a single step."""
    evidence = NeuralCleanse(**SHORT | {"success": 1.0, "steps": 1}).examine(
        small_classifier(), DATA, Engine(device="cpu")
    )
    assert evidence.metrics["classes_without_trigger"] == 9
    assert evidence.metrics["anomaly_index"] is None


@pytest.mark.parametrize(
    "option",
    [
        {"steps": 20},
        {"batch_size": 8},
        {"learning_rate": 0.5},
        {"success": 0.95},
        {"penalty": 1.0},
        {"patience": 1},
        {"repeats": 2},
        {"threshold": 1000.0},
        {"unlearn_epochs": 2},
        {"unlearn_rate": 0.1},
        {"stamped_share": 0.9},
    ],
    ids=lambda option: next(iter(option)),
)
def test_every_option_changes_the_result(option, reference):
    assert not torch.equal(weights(purified(**UNLEARN | option).network), weights(reference.network))


def test_the_table_of_options_is_complete():
    (mark,) = [mark for mark in test_every_option_changes_the_result.pytestmark if mark.name == "parametrize"]
    assert {key for option in mark.args[1] for key in option} == set(NeuralCleanse.model_fields)


def test_same_seed_same_bits_other_seed_other_bits(reference):
    assert torch.equal(weights(purified(**UNLEARN).network), weights(reference.network))
    assert not torch.equal(weights(purified(seed=1, **UNLEARN).network), weights(reference.network))


def test_bad_input_is_refused():
    with pytest.raises(DataError, match="needs labels"):
        NeuralCleanse().check("classifier", DATA.without_labels())
    with pytest.raises(DataError, match="the classes of the network"):
        purified(data=replace(DATA, labels=DATA.labels + 5), **SHORT)
    with pytest.raises(ConfigError, match="works on classifiers"):
        NeuralCleanse().check("encoder", DATA)
    with pytest.raises(ConfigError, match="success"):
        NeuralCleanse(success=0)
