"""Measures of a removal against a slow reference, and the verdict on a data set."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sanitize.detection import Scores, Split
from sanitize.evaluation.filtering import TRUTH_METRICS, judge_data, measure_filtering
from sanitize.types import Verdict


def decided(removed: torch.Tensor) -> Split:
    return Split(~removed, removed, bool(removed.any()), "as the test wants")


@pytest.mark.parametrize("seed", range(5))
def test_measures_are_those_of_counting(seed):
    generator = torch.Generator().manual_seed(seed)
    poisoned = torch.rand(200, generator=generator) < 0.2
    values = torch.rand(200, generator=generator) + 0.5 * poisoned
    removed = values > 1.0
    metrics = measure_filtering(Scores(values), removed, poisoned).metrics
    pairs = [(bad, good) for bad in values[poisoned].tolist() for good in values[~poisoned].tolist()]
    caught = sum(a and b for a, b in zip(removed.tolist(), poisoned.tolist(), strict=True))
    wrong = sum(a and not b for a, b in zip(removed.tolist(), poisoned.tolist(), strict=True))
    assert metrics == pytest.approx(
        {
            "removed_share": (caught + wrong) / 200,
            "poison_share": int(poisoned.sum()) / 200,
            "remaining_poison_share": (int(poisoned.sum()) - caught) / (200 - caught - wrong),
            "auroc": sum((bad > good) + 0.5 * (bad == good) for bad, good in pairs) / len(pairs),
            "recall": caught / int(poisoned.sum()),
            "precision": caught / (caught + wrong),
            "false_alarm_rate": wrong / (200 - int(poisoned.sum())),
        }
    )


def test_what_cannot_be_measured_is_none_with_a_reason():
    values, nothing = torch.rand(10), torch.zeros(10, dtype=torch.bool)
    unknown = measure_filtering(Scores(values), nothing, None)
    assert unknown.metrics == {"removed_share": 0.0} | dict.fromkeys(TRUTH_METRICS)
    assert set(unknown.unmeasured) == set(TRUTH_METRICS)
    clean = measure_filtering(Scores(values), nothing, nothing)
    assert set(clean.unmeasured) == {"auroc", "recall", "precision"}
    assert clean.metrics["false_alarm_rate"] == 0.0
    all_bad = measure_filtering(Scores(values), nothing, ~nothing)
    assert set(all_bad.unmeasured) == {"auroc", "precision", "false_alarm_rate"}
    assert all_bad.metrics["recall"] == 0.0
    for measured in (unknown, clean, all_bad):
        assert {name for name, value in measured.metrics.items() if value is None} == set(measured.unmeasured)


def test_finding_nothing_is_no_pass_without_the_truth():
    nothing = torch.zeros(10, dtype=torch.bool)
    some = torch.arange(10) < 3
    verdict, reasons = judge_data(decided(nothing), None)
    assert verdict is Verdict.INCONCLUSIVE
    assert "drill" in reasons[-1]
    assert judge_data(decided(nothing), nothing)[0] is Verdict.PASS
    assert judge_data(decided(nothing), some)[0] is Verdict.FAIL
    verdict, reasons = judge_data(decided(some), None)
    assert (verdict, "3 of 10" in reasons[0]) == (Verdict.FAIL, True)
    assert "2 of 5 poisoned images are left" in judge_data(decided(some), torch.arange(10) < 5)[1][-1]


def test_a_calibrated_search_with_the_model_in_question_may_pass():
    nothing = torch.zeros(10, dtype=torch.bool)
    calibrated = Split(~nothing, nothing, False, "nothing", calibrated=0.01)
    assert judge_data(calibrated, None)[0] is Verdict.PASS
    assert judge_data(calibrated, None, suspect=False)[0] is Verdict.INCONCLUSIVE
    assert judge_data(calibrated, torch.arange(10) < 3)[0] is Verdict.FAIL
    verdict, reasons = judge_data(replace(calibrated, doubt="it reacts"), None)
    assert verdict is Verdict.INCONCLUSIVE
    assert "it reacts" in reasons


def test_evidence_without_a_removal_fails():
    nothing = torch.zeros(10, dtype=torch.bool)
    verdict, reasons = judge_data(Split(nothing, nothing, True, "there is", calibrated=0.01, doubt="no filter"), None)
    assert verdict is Verdict.FAIL
    assert reasons == ["nothing was removed", "there is", "no filter"]
