"""The pages made of detectors' scores: which encoders are whose references, and what a scan would have said."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import classifier_detectors, detectors
from benchmarks.classifiers import TARGET, poisoned
from benchmarks.detectors import SCORES, TRIGGERS, write_evidence
from benchmarks.lab import Lab
from benchmarks.profiles import DIGITS
from benchmarks.roc import examined, of_seed
from benchmarks.verdicts import write_verdicts


def encoder(truth: str, seed: int, patch: float, **more) -> dict:
    spread = 0.01 * (seed % 3)
    return {
        "truth": truth,
        "architecture": "small-cnn",
        "seed": seed,
        "trigger": of_seed(TRIGGERS, seed) if truth == "backdoored" else None,
        "collapse_perturbation": 0.2 + spread,
        "collapse_patch": patch + spread,
        "decree_pl1": 0.1 + spread,
        "attack_success_rate": 1.0 if truth == "backdoored" else None,
    } | more


def lines(page, detector: str, references: str, encoders: str) -> list[str]:
    start = f"| `{detector}` | {references} | {encoders} |"
    return [line.removeprefix(start).strip() for line in page.read_text().splitlines() if line.startswith(start)]


def test_a_scan_is_right_where_scores_are_apart_and_says_nothing_with_few_references(tmp_path):
    clean = [encoder("clean", seed, 0.3) for seed in range(6)]
    patches = [encoder("backdoored", seed, 0.99) for seed in (0, 1)]  # patch and corner
    blends = [encoder("backdoored", 2, 0.3)]
    unplanted = [encoder("backdoored", 5, 0.99, attack_success_rate=0.5)]
    page = tmp_path / "verdicts.md"
    write_verdicts([*clean, *patches, *blends, *unplanted], page)
    assert lines(page, "feature-collapse", "5", "clean") == ["6 | 0 | 0 | 0.00 (0.00 to 0.46) |"]
    assert lines(page, "feature-collapse", "5", "backdoored, patch trigger") == ["0 | 2 | 0 | 1.00 (0.16 to 1.00) |"]
    assert lines(page, "feature-collapse", "5", "backdoored, whole image trigger") == [
        "1 | 0 | 0 | 0.00 (0.00 to 0.97) |"
    ]
    assert lines(page, "decree", "all", "backdoored, patch trigger") == ["2 | 0 | 0 | 0.00 (0.00 to 0.84) |"]
    write_verdicts([*clean[:5], *patches], page)  # four others are left for each
    assert lines(page, "feature-collapse", "5", "clean") == ["0 | 0 | 5 | 0.00 (0.00 to 0.52) |"]
    write_verdicts(clean[:2], page)
    assert lines(page, "decree", "all", "clean") == ["0 | 0 | 2 | 0.00 (0.00 to 0.84) |"]


def write_record(results, row: str, column: str, seed: int, ours: dict) -> None:
    results.mkdir(exist_ok=True)
    record = {"row": row, "column": column, "seed": seed, "ours": ours}
    (results / f"{row}-{column}-{seed}.json").write_text(json.dumps(record))


def test_results_of_all_columns_are_one_record_and_become_pages(tmp_path):
    results = tmp_path / "results"
    for seed in range(6):
        for truth, patch in (("clean", 0.3), ("backdoored", 0.99)):
            made = encoder(truth, seed, patch)
            ours = {name: made[name] for name in (*SCORES, "attack_success_rate") if name in made} | {"collapse": patch}
            write_record(results, f"{truth}, small-cnn", "scores", seed, ours)
            write_record(results, f"{truth}, small-cnn", "after uau", seed, {"collapse_minus_cleaned": patch - 0.3})
            if seed < 4:  # the others have no index yet
                index = 0.0 if seed == 0 else 1.0 if truth == "clean" else 4.0
                write_record(results, f"{truth}, small-cnn", "ssl-cleanse", seed, {"ssl_cleanse_index": index})
    records = examined(results, TRIGGERS)
    assert len(records) == 12
    assert {"collapse_patch", "collapse_minus_cleaned", "ssl_cleanse_index"} <= records[0].keys()
    write_evidence(results, tmp_path / "detectors-digits.png")
    roc = (tmp_path / "detectors-digits-roc.md").read_text()
    assert "| `collapse_patch` | larger | 6 | 6 | 1.000 | 6 of 6 | 1.000 |" in roc
    assert "| `decree_pl1` | smaller | 6 | 6 | 0.500 | 0 of 6 | 0.500 |" in roc
    assert "| `ssl_cleanse_index` | larger | 4 | 4 | 0.781 | 3 of 4 | 0.781 |" in roc
    assert (tmp_path / "detectors-digits.png").stat().st_size > 1000
    assert "verdict x truth" in (tmp_path / "detectors-digits-verdicts.md").read_text()


def test_encoders_with_one_column_count_where_they_can(tmp_path):
    """Whether an attack took is known of those with scores; one kind alone has no area within its architecture."""
    results = tmp_path / "results"
    for seed in range(4):
        for truth, index in (("clean", 1.0), ("backdoored", 3.0)):
            write_record(results, f"{truth}, small-cnn", "ssl-cleanse", seed, {"ssl_cleanse_index": index})
        write_record(results, "clean, resnet18-narrow", "ssl-cleanse", seed, {"ssl_cleanse_index": 1.0})
    picture = tmp_path / "detectors-digits.png"
    write_evidence(results, picture)
    roc, verdicts = (tmp_path / f"detectors-digits-{name}.md" for name in ("roc", "verdicts"))
    assert "ssl_cleanse_index" not in roc.read_text()
    assert lines(verdicts, "decree", "all", "clean") == ["0 | 0 | 0 | - |"]
    made = encoder("backdoored", 0, 0.99)
    write_record(
        results, "backdoored, small-cnn", "scores", 0, {n: made[n] for n in made if n in SCORES or "rate" in n}
    )
    write_evidence(results, picture)
    assert "| `ssl_cleanse_index` | larger | 8 | 1 | 1.000 | 1 of 1 | 1.000 |" in roc.read_text()
    assert lines(verdicts, "decree", "all", "backdoored, patch trigger") == ["0 | 0 | 1 | 0.00 (0.00 to 0.97) |"]


def test_scores_of_classifiers_become_a_page(tmp_path):
    results = tmp_path / "results"
    for seed in range(3):
        clean = {"anomaly_index": 1.0, "smallest_trigger": 0.2, "attack_success_rate": None}
        write_record(results, "clean", "neural-cleanse", seed, clean)
        found = {"anomaly_index": 0.5 + seed, "smallest_trigger": 0.1, "attack_success_rate": 0.9}
        write_record(results, "backdoored", "neural-cleanse", seed, found)
    unplanted = {"anomaly_index": 0.0, "smallest_trigger": 1.0, "attack_success_rate": 0.1}
    write_record(results, "backdoored", "neural-cleanse", 3, unplanted)
    assert {one["trigger"] for one in examined(results, classifier_detectors.ATTACKS)} == {
        None,
        *classifier_detectors.ATTACKS,
    }
    classifier_detectors.write_evidence(results, tmp_path / "detectors-classifiers-digits.png")
    roc = (tmp_path / "detectors-classifiers-digits-roc.md").read_text()
    assert "| `anomaly_index` | larger | 3 | 3 | 0.667 | 2 of 3 | 0.667 |" in roc
    assert "| `smallest_trigger` | smaller | 3 | 3 | 1.000 | 3 of 3 | 1.000 |" in roc


def tiny(tmp_path, **defenses) -> Lab:
    pretraining = DIGITS.pretraining | {"epochs": 1}
    profile = replace(DIGITS, train="digits#0:640", test="digits#1400:1500", pretraining=pretraining, defenses=defenses)
    return Lab(profile, tmp_path, device="cpu")


@pytest.mark.slow
def test_an_encoder_without_an_index_has_nothing_that_stands_out(tmp_path):
    cells = {(cell.row, cell.column): cell for cell in detectors.encoders()}
    measured = cells["clean, small-cnn", "ssl-cleanse"].measure(tiny(tmp_path, **{"ssl-cleanse": {"steps": 1}}))
    assert measured == {"ssl_cleanse_index": 0.0, "attack_success_rate": None}


@pytest.mark.slow
def test_a_classifier_of_which_too_few_triggers_are_found_has_nothing_that_stands_out(tmp_path, monkeypatch):
    monkeypatch.setitem(classifier_detectors.SUPERVISED, "digits", {"epochs": 1, "batch_size": 64})
    lab = tiny(tmp_path, **{"neural-cleanse": {"steps": 1, "repeats": 1}})
    clean, backdoored = (cell.measure(lab) for cell in classifier_detectors.classifiers())
    assert clean["attack_success_rate"] is None
    assert backdoored["attack_success_rate"] >= 0
    for found in (clean, backdoored):
        assert found["anomaly_index"] == 0.0
        assert 0 < found["smallest_trigger"] <= 1
        assert 0 < found["clean_accuracy"] <= 1


def test_badnets_of_the_study_is_a_white_corner(tmp_path):
    lab = Lab(DIGITS, tmp_path, device="cpu")
    made = poisoned(lab, "badnets", classifier_detectors._given(lab, "badnets"))
    chosen = made.truth.poisoned
    assert (made.data.images[chosen][:, :, -4:, -4:] == 255).all()
    assert torch.equal(made.data.images[chosen][:, :, :-4], lab.train.images[chosen][:, :, :-4])
    assert (made.data.labels[chosen] == TARGET).all()
    assert [trigger.target for trigger in made.triggers] == [TARGET]


def test_the_settings_that_a_page_tells_are_those_of_its_models():
    for study, told, untold in (
        (detectors.STUDY, "ssl-cleanse steps 200", "neural-cleanse"),
        (classifier_detectors.STUDY, "{'steps': 150, 'repeats': 2}", "ssl-cleanse"),
    ):
        preface = study.preface(DIGITS)
        assert told in preface
        assert untold not in preface
