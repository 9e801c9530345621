"""DECREE on encoders whose smallest trigger is known, and on the shared encoders."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sanitize.data import load_images
from sanitize.detection.decree import DECREE
from sanitize.errors import ConfigError, DataError
from sanitize.suspects import Encoder
from sanitize.training import Engine
from sanitize.types import ModelSpec, Normalization
from tests.classifiers import small_classifier
from tests.encoders import defender_images, small_encoder

DATA = load_images("digits#0:64").without_labels()
SHORT = {"steps": 8, "batch_size": 32, "repeats": 2, "similarity": 0.05}


class Constant(nn.Module):
    """The same features for every image: a trigger of no pixel works."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.ones(8))

    def forward(self, images):
        return images.mean(dim=(1, 2, 3))[:, None] * 0 + self.bias


def encoder(backbone: nn.Module) -> Encoder:
    spec = ModelSpec(
        kind="encoder", architecture="own", normalization=Normalization.named("none"), image_size=32, output_size=8
    )
    return Encoder(backbone, spec).eval()


def metrics(network=None, seed: int = 0, **options):
    return DECREE(**SHORT | options).examine(network or small_encoder(), DATA, Engine(device="cpu", seed=seed)).metrics


@pytest.fixture(scope="module")
def reference():
    return metrics()


def test_the_norm_is_a_share_of_the_image(reference):
    assert 0 < reference["pl1_norm_low"] <= reference["pl1_norm"] <= reference["pl1_norm_high"] <= 1
    assert -1 <= reference["clean_self_similarity"] <= 1


@pytest.mark.parametrize(
    "option",
    [
        {"steps": 30},
        {"batch_size": 64},
        {"learning_rate": 0.1},
        {"similarity": 0.5, "steps": 30},
        {"penalty": 1.0},
        {"patience": 1},
        {"repeats": 3},
        {"centred": True},
    ],
    ids=lambda option: next(iter(option)),
)
def test_every_option_changes_the_result(option, reference):
    assert metrics(**option) != reference


def test_the_table_of_options_is_complete():
    (mark,) = [mark for mark in test_every_option_changes_the_result.pytestmark if mark.name == "parametrize"]
    assert {key for option in mark.args[1] for key in option} == set(DECREE.model_fields)


def test_same_seed_same_numbers(reference):
    assert metrics() == reference
    assert metrics(seed=1) != reference


def test_nothing_found_is_none_with_a_reason_and_never_zero():
    evidence = DECREE(**SHORT | {"similarity": 1.0, "steps": 4}).examine(small_encoder(), DATA, Engine(device="cpu"))
    assert evidence.metrics["pl1_norm"] is None
    assert "no trigger" in evidence.unmeasured["pl1_norm"]
    assert not evidence.pictures


def test_a_blank_mask_is_nothing_found():
    found = metrics(encoder(Constant()), steps=300, learning_rate=1.0, penalty=1.0, patience=1, similarity=0.99)
    assert found["clean_self_similarity"] == pytest.approx(1.0)
    assert found["pl1_norm"] is None


def test_the_suspect_is_left_unchanged_and_trainable():
    suspect = small_encoder()
    before = torch.cat([value.flatten().double() for value in suspect.state_dict().values()])
    metrics(suspect)
    assert torch.equal(torch.cat([value.flatten().double() for value in suspect.state_dict().values()]), before)
    assert all(parameter.requires_grad for parameter in suspect.parameters())


@pytest.mark.slow
def test_a_backdoored_encoder_allows_a_much_smaller_trigger(encoders):
    """Measured with 150 steps: 0.007 for the backdoored encoder, 0.168 for the clean one."""
    decree = DECREE(steps=80, repeats=1, batch_size=64)
    norms = [
        decree.examine(network, defender_images(), Engine(device="cpu")).metrics["pl1_norm"]
        for network in (encoders.backdoored, encoders.clean)
    ]
    assert norms[0] < norms[1] / 4


def test_bad_input_is_refused():
    with pytest.raises(DataError, match="at least 32"):
        DECREE().examine(small_encoder(), DATA.subset(slice(0, 31)), Engine(device="cpu"))
    with pytest.raises(ConfigError, match="works on encoders"):
        DECREE().examine(small_classifier(), DATA, Engine(device="cpu"))
