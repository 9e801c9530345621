"""The study of classifiers: its rows are attacks that there are, and its scores point the way that it says."""

from __future__ import annotations

import pytest
import torch

from benchmarks import classifier_ablation, classifier_data
from benchmarks.classifiers import CLEAN, PAPER, PARTS, POISON_RATE, TARGET, _sample_metric, poisoned
from benchmarks.lab import Lab
from benchmarks.profiles import DIGITS
from sanitize.data import load_images
from sanitize.defenses import DBR
from sanitize.trainers import DST
from tests.classifiers import small_classifier


@pytest.fixture
def lab(tmp_path) -> Lab:
    return Lab(DIGITS, tmp_path, device="cpu")


@pytest.mark.parametrize("row", ["badnets", "badnets, all-to-all", "blend-kitty", "sig"])
def test_a_row_is_an_attack_with_the_truth_beside_it(row, lab):
    assert row in PAPER
    made, clean = poisoned(lab, row), lab.train
    changed = (made.data.images != clean.images).flatten(1).any(dim=1)
    assert torch.equal(changed, made.truth.poisoned)
    assert torch.equal(made.truth.labels, clean.labels)
    wrong = made.data.labels != clean.labels
    assert bool(wrong.any()) == (row != "sig")  # which is clean-label
    eligible = {"badnets, all-to-all": clean.labels >= 0, "sig": clean.labels == TARGET}
    share = made.truth.count / int(eligible.get(row, clean.labels != TARGET).sum())
    assert share == pytest.approx(POISON_RATE, abs=0.01)


def test_the_clean_row_has_no_poison(lab):
    made = poisoned(lab, CLEAN)
    assert (made.truth.count, made.triggers) == (0, ())


def test_published_values_stand_in_their_cells():
    cells = {(cell.row, cell.column): cell.paper for cell in PARTS["purification"].cells()}
    assert cells["sig", "none"] == pytest.approx({"clean_accuracy": 0.9288, "attack_success_rate": 0.9969})
    assert cells["cl", "d-br"] == pytest.approx({"clean_accuracy": 0.9208, "attack_success_rate": 0.0})
    assert cells["badnets", "d-st"] == pytest.approx({"clean_accuracy": 0.9277, "attack_success_rate": 0.0003})
    assert cells["badnets", "uau"] == {}


@pytest.mark.parametrize(
    ("part", "row", "column", "accuracy", "success"),
    [
        ("cifar100", "blend-kitty", "d-br", 0.72, 0.0001),
        ("cifar100", "trojan", "d-st", 0.6804, 0.0008),
        ("imagenette", "badnets", "none", 0.8472, 0.958),
    ],
)
def test_the_same_holds_for_other_images(part, row, column, accuracy, success):
    cells = {(cell.row, cell.column): cell.paper for cell in classifier_data.PARTS[part].cells()}
    assert cells[row, column] == pytest.approx({"clean_accuracy": accuracy, "attack_success_rate": success})


@pytest.mark.parametrize("part", classifier_data.PARTS)
@pytest.mark.parametrize("scale", ["paper", "small"])
def test_other_images_have_settings_and_names_of_their_own(part, scale):
    study = classifier_data.PARTS[part]
    profile = study.profiles[scale]
    assert profile.name == f"{part}-{scale}"  # or one work folder would mix networks of different images
    told = study.preface(profile)
    assert profile.train in told and ("D-ST with" in told) == (part == "cifar100")


def test_surer_answers_are_more_suspicious(lab):
    data, network = load_images("digits#0:200"), small_classifier().eval()
    with torch.inference_mode():
        logits = network(data.images / 255).double()
    logs = logits.log_softmax(dim=1)
    own = logs[torch.arange(200), data.labels]
    negentropy = (logs.exp() * logs).sum(dim=1)
    for name, expected in (("loss", own), ("entropy", negentropy)):
        assert torch.allclose(_sample_metric(name, network, data, lab).double(), expected, atol=1e-4)
    assert (_sample_metric("feature norm", network, data, lab) > 0).all()


def test_every_variant_of_the_ablation_is_another():
    for method, variants in ((DBR, classifier_ablation.UNLEARNING), (DST, classifier_ablation.TRAINING)):
        made = [method(**values).model_dump_json() for values in variants.values()]
        assert len(set(made)) == len(variants)
    columns = {cell.column for cell in classifier_ablation.STUDY.cells()}
    assert columns == {"none", *classifier_ablation.UNLEARNING, *classifier_ablation.TRAINING}
