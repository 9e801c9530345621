"""SSL-Cleanse beyond the table: targets drawn from the right clusters, nothing found, and what each option does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sanitize.data import load_images
from sanitize.defenses.ssl_cleanse import SSLCleanse, _Targets
from sanitize.errors import ConfigError, DataError
from sanitize.training import Engine
from tests.encoders import small_encoder

DATA = load_images("digits#0:64").without_labels()
SHORT = {"clusters": 5, "steps": 12, "batch_size": 16, "success": 0.5, "patience": 2}
UNLEARN = SHORT | {"threshold": 0.01, "unlearn_epochs": 1}  # something always stands out so


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in network.state_dict().values()])


def purified(network=None, seed: int = 0, **options):
    return SSLCleanse(**options).purify(network or small_encoder(), DATA, Engine(device="cpu", seed=seed))


@pytest.fixture(scope="module")
def reference():
    return purified(**UNLEARN)


def test_drawn_features_belong_to_their_cluster_and_cover_it():
    features = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    features[:30] += 5
    targets = _Targets.of(features, 3, Engine(device="cpu"))
    drawn = targets.draw(400, torch.Generator().manual_seed(0))
    for number, group in zip(targets.numbers, drawn, strict=True):
        members = {tuple(row) for row in targets.features[targets.assignment == number].tolist()}
        assert {tuple(row) for row in group.tolist()} == members


def test_where_nothing_stands_out_the_encoder_comes_back_as_it_was():
    suspect = small_encoder()
    result = purified(suspect, **SHORT, threshold=1000.0)
    assert torch.equal(weights(result.network), weights(suspect))
    assert result.before == result.after
    assert result.findings[0].rule == "ssl-cleanse-nothing-found"


def test_what_stands_out_is_unlearned_and_examined_again(reference):
    assert list(reference.history) == ["invert", "unlearn", "invert-again"]
    assert reference.findings[0].rule == "ssl-cleanse-small-trigger"
    assert reference.before != reference.after
    assert 0 < reference.before["smallest_trigger"] <= 1
    assert reference.pictures


def test_fewer_than_four_clusters_have_no_index():
    evidence = SSLCleanse(**SHORT | {"clusters": 3}).examine(small_encoder(), DATA, Engine(device="cpu"))
    assert evidence.metrics["anomaly_index"] is None
    assert "4 clusters or more" in evidence.unmeasured["anomaly_index"]


def test_no_trigger_found_is_none_and_never_zero():
    evidence = SSLCleanse(**SHORT | {"success": 1.0, "steps": 1}).examine(small_encoder(), DATA, Engine(device="cpu"))
    assert evidence.metrics["smallest_trigger"] is None
    assert evidence.metrics["anomaly_index"] is None


def test_the_suspect_and_batch_norm_statistics_are_left_unchanged(reference):
    suspect = small_encoder()
    before = weights(suspect)
    purified(suspect, **UNLEARN)
    assert torch.equal(weights(suspect), before)
    for name, value in suspect.state_dict().items():
        if "running" in name:
            assert torch.equal(reference.network.state_dict()[name], value), name


@pytest.mark.parametrize(
    "option",
    [
        {"clusters": 8},
        {"steps": 20},
        {"batch_size": 8},
        {"learning_rate": 0.5},
        {"success": 0.3},
        {"penalty": 50.0},
        {"patience": 1},
        {"threshold": 1000.0},
        {"unlearn_epochs": 2},
        {"unlearn_rate": 0.01},
        {"unlearn_weight": 5.0},
    ],
    ids=lambda option: next(iter(option)),
)
def test_every_option_changes_the_result(option, reference):
    result = purified(**UNLEARN | option)
    assert (result.before, result.after) != (reference.before, reference.after)


def test_the_table_of_options_is_complete():
    (mark,) = [mark for mark in test_every_option_changes_the_result.pytestmark if mark.name == "parametrize"]
    assert {key for option in mark.args[1] for key in option} == set(SSLCleanse.model_fields)


def test_same_seed_same_bits_other_seed_other_bits(reference):
    assert torch.equal(weights(purified(**UNLEARN).network), weights(reference.network))
    assert not torch.equal(weights(purified(seed=1, **UNLEARN).network), weights(reference.network))


def test_bad_input_is_refused():
    with pytest.raises(DataError, match="at least 64"):
        SSLCleanse().check("encoder", DATA.subset(slice(0, 63)))
    with pytest.raises(ConfigError, match="works on encoders"):
        SSLCleanse().check("classifier", DATA)
    constant = small_encoder()
    for parameter in constant.parameters():
        parameter.data.zero_()
    with pytest.raises(DataError, match="constant"):
        purified(constant, **SHORT)
