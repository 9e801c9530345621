"""PoisonCAM and PatchSearch on digits: poison is found with its windows; clean data keep everything."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sanitize.data import load_images
from sanitize.detection import PatchSearch, PoisonCAM
from sanitize.detection.patchsearch import grad_cam, map_layer
from sanitize.detection.window_evidence import Evidence, Thresholds, chance
from sanitize.detection.window_search import WindowScores
from sanitize.errors import ConfigError, DataError
from sanitize.evaluation.filtering import judge_data, measure_filtering, measure_windows
from sanitize.suspects import untrained
from sanitize.training import Engine
from sanitize.types import Verdict
from tests.encoders import small_encoder
from tests.threat import load_threat
from tests.trained import unpack

FAST = {"mask_stride": 8, "networks": 1, "iterations": 160, "flip": 0.0}


@pytest.fixture(scope="module")
def threat(tmp_path_factory):
    return load_threat(unpack("threat", tmp_path_factory.mktemp("trained") / "threat"))


@pytest.fixture(scope="module")
def found(threat) -> WindowScores:
    data = threat.poison.data.without_labels()
    return PoisonCAM(**FAST).score(threat.backdoored, data, Engine(device="cpu"))


@cache
def tiny(method=PoisonCAM, seed=0, **options) -> WindowScores:
    """Scores of an untrained network, quickly."""
    settings = {"flip_images": 12, "top": 5, "null_windows": 100, "clusters": 6, "minimum_score": 1.0}
    if method is PoisonCAM:
        settings["mask_stride"] = 16
    detector = method(**settings | options)
    data = load_images("digits#0:120").without_labels()
    return detector.score(small_encoder(), data, Engine(device="cpu", seed=seed))


@pytest.mark.slow
def test_the_trigger_works_on_the_threat_model(threat):
    from sanitize.functional.clusters import cluster

    engine, images = Engine(device="cpu"), threat.data.images.float() / 255
    shown = threat.trigger.apply(images, engine.generator("test"))
    poisoned = threat.poison.data.images.float() / 255
    features = engine.forward(threat.backdoored, poisoned.__getitem__, 600)
    clusters = cluster(features, 12, seed=0)
    source = clusters.assignment[threat.truth].mode().values
    pulled = clusters.nearest(engine.forward(threat.backdoored, shown.__getitem__, 600))
    assert (pulled == source).float().mean() > 0.85


@pytest.mark.slow
def test_poison_is_found_with_its_windows(threat, found):
    split = PoisonCAM(**FAST).split(found)
    assert split.evidence, split.reason
    measured = measure_windows(found, threat.truth, threat.boxes).metrics
    assert measured["top20_accuracy"] >= 0.9
    assert measured["catch_rate"] > 0.5
    assert 0.25 < measured["iou"] <= 49 / 81
    filtered = measure_filtering(found, split.poisoned, threat.truth).metrics
    assert filtered["recall"] >= 0.9
    assert filtered["precision"] >= 0.5
    assert filtered["auroc"] > 0.85
    assert split.numbers["top_score"] > 0.6
    assert split.calibrated == 0.01
    assert "calibrated for a false-alarm rate of 1.0%" in split.reason


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["clean", "backdoored"])
def test_clean_data_keep_everything(threat, encoder):
    detector = PoisonCAM(**FAST)
    data = threat.data.subset(slice(0, 300)).without_labels()
    scores = detector.score(getattr(threat, encoder), data, Engine(device="cpu"))
    split = detector.split(scores)
    assert not split.evidence, split.reason
    assert not split.poisoned.any()
    assert scores.poison is None
    assert "no evidence" in split.reason
    if encoder == "clean":
        assert split.numbers["top_score"] < 0.3
        assert split.doubt is None


@pytest.mark.slow
def test_patchsearch_finds_poison_by_grad_cam(threat):
    detector = PatchSearch(flip_images=20, networks=1, iterations=20, flip=0.0)
    scores = detector.score(threat.backdoored, threat.poison.data.without_labels(), Engine(device="cpu"))
    measured = measure_windows(scores, threat.truth, threat.boxes).metrics
    assert measured["top20_accuracy"] >= 0.6
    assert (scores.flips == 20).all()


def test_scores_are_those_of_the_seed():
    assert torch.equal(tiny().values, tiny.__wrapped__().values)
    assert not torch.equal(tiny().values, tiny(seed=1).values)


def test_the_batch_size_changes_nothing():
    one, other = tiny(batch_size=50), tiny(batch_size=256)
    assert torch.equal(one.corners, other.corners)
    assert torch.equal(one.values, other.values)


@pytest.mark.parametrize(
    "options",
    [
        {"dropped_share": 0.5},
        {"classifier": "resnet18-narrow"},
        {"networks": 2},
        {"iterations": 40},
        {"classifier_batch": 8},
        {"jitter": 0.9},
        {"grey": 0.9},
        {"flip": 0.9},
    ],
)
def test_options_of_the_classifier_change_it(options):
    plain = {"networks": 1, "iterations": 20, "classifier_batch": 4}
    made, other = (classified(**plain | more) for more in ({}, options))
    assert not torch.equal(made, other)


def classified(**options) -> torch.Tensor:
    """What the classifier says where everything is taken for evidence."""
    generator = torch.Generator().manual_seed(0)
    data = load_images("digits#0:120").without_labels()
    values = torch.rand(120, generator=generator)
    detector = PoisonCAM(top=5, **options)
    search = SimpleNamespace(flips=torch.ones(120), corners=torch.randint(20, (120, 2), generator=generator), window=9)
    ranked = values.argsort(descending=True)
    left = torch.ones(120, dtype=torch.bool)
    return detector._filter(data, search, ranked, ranked[:5], left, 1, Engine(device="cpu"))


@pytest.mark.parametrize(
    "options",
    [
        {"window": 14},
        {"clusters": 12},
        {"flip_images": 7},
        {"flip_test": "plain"},
        {"first_flips": 3},
        {"flip_rule": "any"},
        {"search": "iterative"},
        {"search": "iterative", "per_cluster": 1},
        {"search": "iterative", "dropped_clusters": 0.5},
        {"masks": "random", "mask_count": 16},
        {"masks": "random", "mask_count": 17},
        {"masks": "interval", "mask_count": 16},
        {"masks": "blocks", "mask_count": 16},
        {"mask_stride": 10},
        {"mask_fill": "black"},
    ],
)
def test_options_of_the_search_change_it(options):
    if "per_cluster" in options or "dropped_clusters" in options:
        plain = tiny(search="iterative")
    elif options.get("mask_count") == 17:
        plain = tiny(masks="random", mask_count=16)
    else:
        plain = tiny()
    made = tiny(**options)
    same = torch.equal(made.corners, plain.corners) and torch.equal(made.flips, plain.flips)
    assert not (same and torch.equal(made.values, plain.values))


def test_the_top_and_the_null_are_as_large_as_asked():
    assert len(tiny(top=8).top) == 8
    assert not torch.equal(tiny(null_windows=150).evidence.score_null, tiny().evidence.score_null)
    assert tiny(search="auto").flips.min() > 0
    assert (tiny(search="iterative").flips == 0).any()


def test_windows_that_were_not_scored_have_none():
    scores = tiny(search="iterative")
    missing = scores.flips == 0
    assert (scores.corners[missing] == -1).all()
    assert (scores.values[missing] == 0).all()
    assert (scores.corners[~missing] >= 0).all()
    assert not missing[scores.top].any()


def evidence(score=0.9, agreement=8.0, **thresholds) -> Evidence:
    limits = Thresholds(**{"false_alarm_rate": 0.01, "score": 0.3, "agreement": 1.5} | thresholds)
    return Evidence(score, torch.linspace(0, 0.5, 199), agreement, torch.linspace(0.5, 1.8, 199), limits)


def test_evidence_takes_both_tests():
    assert evidence().convincing
    assert not evidence(score=0.4).convincing
    assert not evidence(agreement=1.6).convincing
    assert evidence(score=0.495, agreement=1.785, false_alarm_rate=0.05).convincing
    assert not replace(evidence(score=0.7), thresholds=Thresholds(0.01, 0.8, 1.5)).convincing
    assert not replace(evidence(), thresholds=Thresholds(0.01, 0.3, 9.0)).convincing


def test_a_network_that_reacts_without_agreement_is_a_doubt():
    assert "do not look alike" in (evidence(agreement=1.2).doubt or "")
    assert evidence().doubt is None
    assert evidence(score=0.1, agreement=1.2).doubt is None


def test_chances_are_calibrated():
    random = torch.Generator().manual_seed(0)
    alarms = sum(
        chance(float(torch.rand((), generator=random)), torch.rand(199, generator=random)) <= 0.05 for _ in range(2000)
    )
    assert 0.03 < alarms / 2000 < 0.07


def test_thresholds_reach_the_decision():
    scores = tiny(false_alarm_rate=0.02, minimum_score=0.9, minimum_agreement=1.2)
    assert scores.evidence.thresholds == Thresholds(0.02, 0.9, 1.2)


def test_without_evidence_no_image_is_poisoned_whatever_the_classifier_says():
    scores = replace(tiny(), poison=torch.ones(120))
    assert not scores.evidence.convincing
    assert not PoisonCAM().split(scores).poisoned.any()


@pytest.mark.slow
def test_a_classifier_that_does_not_know_the_best_windows_removes_nothing(found):
    poison = torch.ones(600)
    poison[found.top[:11]] = 0.0
    scores = replace(found, poison=poison)
    split = PoisonCAM(**FAST).split(scores)
    assert split.evidence
    assert not split.poisoned.any()
    assert "recognises 9 of the 20" in (split.doubt or "")
    assert judge_data(split, None)[0] is Verdict.FAIL
    poison[found.top[0]] = 1.0
    assert PoisonCAM(**FAST).split(scores).poisoned.sum() == 590


def test_measures_of_windows_are_those_of_counting():
    scores = tiny()
    truth = torch.zeros(120, dtype=torch.bool)
    truth[scores.order[:7]] = True
    boxes = torch.zeros(120, 4, dtype=torch.int64)
    boxes[truth] = torch.tensor([10, 10, 6, 6])
    measured = measure_windows(scores, truth, boxes)
    covered, overlap = [], []
    for row in torch.nonzero(truth).flatten().tolist():
        shown, patch = torch.zeros(2, 32, 32, dtype=torch.bool)
        top, left = scores.corners[row].tolist()
        shown[top : top + scores.window, left : left + scores.window] = True
        patch[10:16, 10:16] = True
        covered.append(float((shown & patch).sum() / patch.sum()))
        overlap.append(float((shown & patch).sum() / (shown | patch).sum()))
    assert measured.metrics["catch_rate"] == pytest.approx(sum(covered) / 7)
    assert measured.metrics["iou"] == pytest.approx(sum(overlap) / 7)
    assert measured.metrics["top20_accuracy"] == pytest.approx(7 / 20)
    assert measured.metrics["top100_accuracy"] == pytest.approx(7 / 100)
    unknown = measure_windows(scores, None, None)
    assert set(unknown.unmeasured) == set(unknown.metrics)
    assert not any(unknown.metrics.values())


def test_bad_input_is_refused_before_any_work():
    data = load_images("digits#0:120")
    for detector, message in (
        (PoisonCAM(clusters=121), "do not fall into 121 clusters"),
        (PoisonCAM(window=33), "larger than images of 32 px"),
        (PatchSearch(top=31), "31 candidates are too many"),
    ):
        with pytest.raises(DataError, match=message):
            detector.check(data)
    with pytest.raises(DataError, match="at least 100 images"):
        PoisonCAM().check(data.subset(slice(99)))
    with pytest.raises(ConfigError, match="unknown architecture"):
        PoisonCAM(classifier="resnet-x").check(data)
    with pytest.raises(DataError, match="32 px, and the network takes 16 px"):
        wrong = untrained("small-cnn", kind="encoder", image_size=16, normalization="half")
        PoisonCAM().score(wrong, data, Engine(device="cpu"))


def test_collapsed_and_broken_features_are_refused():
    data = load_images("digits#0:120").without_labels()
    network = small_encoder()
    with torch.no_grad():
        network.backbone.features[-1].weight.zero_()
        network.backbone.features[-1].bias.fill_(1.0)
    with pytest.raises(DataError, match="collapsed"):
        PoisonCAM().score(network, data, Engine(device="cpu"))
    with torch.no_grad():
        network.backbone.features[-1].bias.fill_(torch.nan)
    with pytest.raises(DataError, match="not finite"):
        PoisonCAM().score(network, data, Engine(device="cpu"))


@pytest.mark.parametrize("method", [PoisonCAM, PatchSearch])
def test_the_documented_parameters_are_those_of_the_code(method):
    page = Path(__file__).parents[2] / "docs" / "methods" / f"{method.name}.md"
    rows = page.read_text().partition("| parameter |")[2].split("\n\n")[0].splitlines()[2:]
    assert [[cell.strip() for cell in row.strip("|").split("|")] for row in rows] == [
        [f"`{name}`", str(item["value"]), str(item["paper"]), item["description"]]
        for name, item in method().parameters().items()
    ]


@pytest.mark.parametrize("architecture", ["small-cnn", "resnet18-narrow", "vit-small"])
def test_grad_cam_finds_a_layer_and_is_that_of_its_definition(architecture):
    network = untrained(architecture, kind="encoder", image_size=32, normalization="half")
    layer = map_layer(network, torch.device("cpu"))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    centres = torch.randn(4, network.spec.output_size, generator=torch.Generator().manual_seed(1))
    maps = grad_cam(network, layer, centres, images)
    assert maps.shape == (2, 32, 32)
    assert maps.min() >= 0
    if architecture != "small-cnn":
        return
    for number in range(2):
        kept = []
        handle = layer.register_forward_hook(lambda module, given, output, kept=kept: kept.append(output))
        features = network(images[number : number + 1])
        handle.remove()
        kept[0].retain_grad()
        (features @ torch.nn.functional.normalize(centres).T).max().backward()
        slow = torch.zeros(4, 4)
        for channel in range(128):
            slow += kept[0].grad[0, channel].mean() * kept[0][0, channel].detach()
        enlarged = torch.nn.functional.interpolate(slow.relu()[None, None], (32, 32), mode="bilinear")
        torch.testing.assert_close(maps[number], enlarged[0, 0], atol=1e-6, rtol=1e-4)
