"""The verdict: pass needs a known trigger that worked and no longer does, and clean accuracy kept."""

from __future__ import annotations

import pytest

from sanitize.evaluation import Policy, judge_purification
from sanitize.types import Verdict

BEFORE = {"clean_accuracy": 0.97, "attack_success_rate": 0.99}
AFTER = {"clean_accuracy": 0.96, "attack_success_rate": 0.05}


def verdict(before=None, after=None, destroyed=None, policy=None):
    return judge_purification(
        BEFORE | (before or {}), AFTER | (after or {}), destroyed=destroyed, policy=policy or Policy()
    )


def test_a_removed_trigger_with_accuracy_kept_passes():
    assert verdict()[0] is Verdict.PASS


@pytest.mark.parametrize(
    ("after", "named"),
    [
        ({"attack_success_rate": 0.11}, "attack success rate"),
        ({"clean_accuracy": 0.94}, "clean accuracy"),
    ],
)
def test_a_measure_over_its_threshold_fails(after, named):
    result, reasons = verdict(after=after)
    assert result is Verdict.FAIL
    assert named in reasons[0]


def test_a_destroyed_encoder_fails_whatever_else_was_measured():
    result, reasons = verdict(destroyed="clean features moved too far")
    assert result is Verdict.FAIL
    assert reasons[0] == "clean features moved too far"


@pytest.mark.parametrize(
    ("missing", "settles"),
    [("attack_success_rate", "--trigger"), ("clean_accuracy", "--probe-data")],
)
def test_what_was_not_measured_never_passes(missing, settles):
    result, reasons = verdict(before={missing: None}, after={missing: None})
    assert result is Verdict.INCONCLUSIVE
    assert settles in reasons[0]


def test_only_options_that_the_kind_has_are_asked_for():
    missing = {"clean_accuracy": None}
    reasons = judge_purification(missing, missing, destroyed=None, policy=Policy(), kind="classifier")[1]
    assert "--test-data" in reasons[0]
    assert "--probe-data" not in reasons[0]


def test_the_canary_alone_never_passes():
    metrics = {"canary_success_rate": 0.9, "clean_similarity": 1.0}
    cleaned = {"canary_success_rate": 0.0, "clean_similarity": 0.99}
    assert judge_purification(metrics, cleaned, destroyed=None, policy=Policy())[0] is Verdict.INCONCLUSIVE


def test_a_trigger_that_never_worked_settles_nothing():
    result, reasons = verdict(before={"attack_success_rate": 0.02}, after={"attack_success_rate": 0.01})
    assert result is Verdict.INCONCLUSIVE
    assert "hardly works" in reasons[0]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({"maximum_attack_success_rate": 0.04}, Verdict.FAIL),
        ({"maximum_clean_accuracy_loss": 0.005}, Verdict.FAIL),
        ({"established_attack_success_rate": 0.995}, Verdict.INCONCLUSIVE),
        ({}, Verdict.PASS),
    ],
)
def test_every_threshold_changes_the_verdict(policy, expected):
    assert verdict(policy=Policy(**policy))[0] is expected
