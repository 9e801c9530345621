"""BMAIU beyond the table: each option changes something, the guard stops, the suspect is left alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sanitize import BMAIU
from sanitize.data import ImageSet
from sanitize.errors import ConfigError, DataError
from sanitize.training import Engine
from tests.encoders import defender_images, small_encoder

SHORT = {"max_steps": 3, "minimum_clean_similarity": -1.0}


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in network.state_dict().values()])


def purified(seed: int = 0, **options):
    return BMAIU(**SHORT | options).purify(small_encoder(), defender_images(), Engine(device="cpu", seed=seed))


@pytest.fixture(scope="module")
def reference() -> torch.Tensor:
    return weights(purified().network)


@pytest.mark.parametrize(
    "option",
    [
        {"epochs": 2, "max_steps": None},
        {"implant_epochs": 1, "max_steps": 4},
        {"max_steps": 2},
        {"batch_size": 32},
        {"learning_rate": 0.02},
        {"momentum": 0.5},
        {"weight_decay": 0.1},
        {"clip_norm": 0.01},
        {"effectiveness_weight": 3.0},
        {"unlearn_weight": 2.0},
        {"separation_weight": 5.0},
        {"consistency_weight": 4.0},
        {"canary_size": 9},
        {"clusters": 3},
        {"reference_share": 0.1},
        {"anchor": "f0"},
        {"detach_reference": True},
        {"freeze_batch_norm": False},
    ],
    ids=lambda option: next(iter(option)),
)
def test_every_option_changes_the_result(option, reference):
    assert not torch.equal(weights(purified(**option).network), reference)


def test_the_table_of_options_is_complete():
    tested = {
        key
        for mark in test_every_option_changes_the_result.pytestmark
        if mark.name == "parametrize"
        for option in mark.args[1]
        for key in option
    }
    assert tested | {"minimum_clean_similarity"} == set(BMAIU.model_fields)


def test_same_seed_same_bits_other_seed_other_bits(reference):
    assert torch.equal(weights(purified().network), reference)
    assert not torch.equal(weights(purified(seed=1).network), reference)


def test_the_suspect_is_left_unchanged():
    suspect = small_encoder()
    before = weights(suspect)
    BMAIU(**SHORT).purify(suspect, defender_images(), Engine(device="cpu"))
    assert torch.equal(weights(suspect), before)


def test_both_stages_start_at_their_anchor():
    result = purified(learning_rate=1e-9, epochs=1, max_steps=1)
    assert result.history["implant"].epochs[0]["consistency"] == pytest.approx(-1.0, abs=1e-4)
    assert result.history["unlearn"].epochs[0]["consistency"] == pytest.approx(-1.0, abs=1e-4)


def test_frozen_batch_norm_keeps_its_statistics():
    suspect = small_encoder()
    frozen = BMAIU(**SHORT).purify(suspect, defender_images(), Engine(device="cpu")).network
    for name, value in suspect.state_dict().items():
        if "running" in name:
            assert torch.equal(frozen.state_dict()[name], value), name


def test_the_guard_stops_a_destroyed_encoder_with_a_reason():
    result = purified(learning_rate=1.0, clip_norm=1e6, minimum_clean_similarity=0.9, max_steps=None)
    assert result.destroyed is not None
    assert "learning_rate" in result.destroyed
    assert len(result.history["implant"].epochs) < 20


def test_too_few_images():
    data = defender_images()
    with pytest.raises(DataError, match="at least 64"):
        BMAIU().check("encoder", ImageSet(images=data.images[:63]))


def test_a_classifier_is_refused():
    with pytest.raises(ConfigError, match="works on encoders"):
        BMAIU().check("classifier", defender_images())


def test_a_guess_that_nobody_uses_is_refused():
    data = defender_images()
    guess = replace(data, suspected=torch.arange(len(data)) < 3)
    with pytest.raises(ConfigError, match="no use for suspected"):
        BMAIU().check("encoder", guess)


def test_no_data():
    with pytest.raises(DataError, match="--data"):
        BMAIU().check("encoder", None)


def test_constant_features_are_refused():
    suspect = small_encoder()
    for parameter in suspect.parameters():
        parameter.data.zero_()
    with pytest.raises(DataError, match="constant"):
        BMAIU(**SHORT).purify(suspect, defender_images(), Engine(device="cpu"))


def test_a_canary_larger_than_the_image_is_refused():
    with pytest.raises(DataError, match="canary_size=40"):
        purified(canary_size=40)


def test_an_unknown_parameter_is_named():
    with pytest.raises(ConfigError, match="Did you mean unlearn_weight"):
        BMAIU(unlearn_wieght=5.0)
