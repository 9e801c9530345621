"""The pages made of detectors' scores: which encoders are whose references, and what a scan would have said."""

from __future__ import annotations

import json

from benchmarks.detectors import SCORES, examined, trigger_of, write_evidence
from benchmarks.verdicts import write_verdicts


def encoder(truth: str, seed: int, patch: float, **more) -> dict:
    spread = 0.01 * (seed % 3)
    return {
        "truth": truth,
        "architecture": "small-cnn",
        "seed": seed,
        "trigger": trigger_of(seed) if truth == "backdoored" else None,
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


def test_results_of_both_columns_are_one_record_and_become_pages(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    for seed in range(6):
        for truth, patch in (("clean", 0.3), ("backdoored", 0.99)):
            made = encoder(truth, seed, patch)
            ours = {name: made[name] for name in (*SCORES, "attack_success_rate") if name in made} | {"collapse": patch}
            for column, measured in (("scores", ours), ("after uau", {"collapse_minus_cleaned": patch - 0.3})):
                record = {"row": f"{truth}, small-cnn", "column": column, "seed": seed, "ours": measured}
                (results / f"{truth}-{column}-{seed}.json").write_text(json.dumps(record))
    records = examined(results)
    assert len(records) == 12
    assert {"collapse_patch", "collapse_minus_cleaned"} <= records[0].keys()
    write_evidence(results, tmp_path / "detectors-digits.png")
    roc = (tmp_path / "detectors-digits-roc.md").read_text()
    assert "| `collapse_patch` | larger | 6 | 6 | 1.000 | 6 of 6 | 1.000 |" in roc
    assert "| `decree_pl1` | smaller | 6 | 6 | 0.500 | 0 of 6 | 0.500 |" in roc
    assert (tmp_path / "detectors-digits.png").stat().st_size > 1000
    assert "verdict x truth" in (tmp_path / "detectors-digits-verdicts.md").read_text()
