"""Training on what detectors leave: what is trained on, and the published values."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import poisoned_training
from benchmarks.lab import Lab
from benchmarks.poisoned_training import PARTS, epochs, filters
from benchmarks.profiles import DIGITS
from sanitize.detection import PoisonCAM


def test_published_values_stand_where_they_belong():
    table = {(cell.row, cell.column): cell.paper for cell in filters()}
    assert table["target 1", "none"]["attack_success_rate"] == pytest.approx(0.413)
    assert table["target 2", "poisoncam"]["poison_accuracy"] == pytest.approx(0.61)
    assert table["target 4", "i-cutmix"] == {}
    rows = {cell.row: cell.paper for cell in epochs()}
    assert rows["100% of the epochs"]["attack_success_rate"] == pytest.approx(0.524, abs=0.001)  # as in Table I
    assert next(iter(rows)) == "10% of the epochs"
    assert set(PARTS["filters"].profiles) == {"small", "imagenette", "paper"}


@pytest.mark.slow
def test_a_detector_takes_images_away_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setitem(poisoned_training.EPOCHS, "digits", 1)
    lab = Lab(replace(DIGITS, train="digits#0:200", test="digits#1400:1500", share=0.5), tmp_path, device="cpu")
    trained_on = []

    class Trainer(poisoned_training.SimCLR):
        def train(self, network, data, engine, **options):
            trained_on.append((len(data), self.cutmix))
            return super().train(network, data, engine, **options)

    monkeypatch.setattr(poisoned_training, "SimCLR", Trainer)
    monkeypatch.setattr(poisoned_training, "_removed", lambda lab, target, method: lab.train.labels == target)
    cells = {cell.column: cell for cell in filters() if cell.row == "target 1"}
    measured = {column: cells[column].measure(lab) for column in ("none", "poisoncam + i-cutmix")}
    count = int((lab.train.labels == 1).sum())
    assert trained_on == [(200, False), (200 - count, True)]
    assert [measured[column]["removed"] for column in measured] == [0, count]
    assert all(0 <= measured["none"][name] <= 1 for name in poisoned_training.METRICS)


@pytest.mark.slow
def test_a_detector_searches_once_for_all_trainings(tmp_path, monkeypatch):
    settings = {"epochs": 1, "batch_size": 32, "learning_rate": 0.1}
    profile = replace(DIGITS, train="digits#0:120", test="digits#1400:1500", pretraining=settings, attack={"epochs": 1})
    lab = Lab(profile, tmp_path, device="cpu")
    searched, score = [], PoisonCAM.score

    def counted(self, *arguments):
        searched.append(self)
        return score(self, *arguments)

    monkeypatch.setattr(PoisonCAM, "score", counted)
    first = poisoned_training._removed(lab, 1, "poisoncam")
    again = poisoned_training._removed(replace(lab), 1, "poisoncam")
    assert torch.equal(first, again) and first.dtype == torch.bool and len(first) == 120
    assert len(searched) == 1
