"""The verdict: pass needs a known trigger that worked and no longer does, and clean accuracy kept."""

from __future__ import annotations

import pytest

from sanitize.evaluation import Policy, judge_purification, judge_scan
from sanitize.evaluation.removal import CanaryOutcome, DrillResult
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


def drill(removed: int, survived: int = 0, not_taken: int = 0) -> DrillResult:
    def canary(taken: bool, success: float) -> CanaryOutcome:
        values = {"success_rate": success, "base_rate": 0.1} if taken else {}
        return CanaryOutcome(family="patch", trigger="", target=3, attempts=1, taken=taken, **values)

    made = [canary(True, 0.1)] * removed + [canary(True, 0.9)] * survived + [canary(False, 0.0)] * not_taken
    return DrillResult(tuple(made))


NO_TRIGGER = ({"attack_success_rate": None}, {"attack_success_rate": None})
HARDLY_WORKED = ({"attack_success_rate": 0.2}, {"attack_success_rate": 0.05})
STILL_WORKS = ({}, {"attack_success_rate": 0.4})
REMOVED = ({}, {})


@pytest.mark.parametrize(
    ("trigger", "required", "drilled", "expected", "named"),
    [
        # Without a requirement a drill is told and decides nothing.
        (NO_TRIGGER, None, drill(20), Verdict.INCONCLUSIVE, "--trigger"),
        (REMOVED, None, drill(0, 20), Verdict.PASS, "clean accuracy"),
        # A requirement that nothing was done for is an open question.
        (REMOVED, 0.86, None, Verdict.INCONCLUSIVE, "--drill 20"),
        (NO_TRIGGER, 0.86, None, Verdict.INCONCLUSIVE, "--drill 20"),
        # Met: evidence for a pass, with a trigger or without.
        (REMOVED, 0.86, drill(20), Verdict.PASS, "clean accuracy"),
        (NO_TRIGGER, 0.86, drill(20), Verdict.PASS, "clean accuracy"),
        (HARDLY_WORKED, 0.86, drill(20), Verdict.PASS, "clean accuracy"),
        # A trigger that still works, or accuracy that is lost, outweighs it.
        (STILL_WORKS, 0.86, drill(20), Verdict.FAIL, "attack success rate"),
        (({}, {"clean_accuracy": 0.9}), 0.86, drill(20), Verdict.FAIL, "clean accuracy"),
        (({"clean_accuracy": None}, {"clean_accuracy": None}), 0.86, drill(20), Verdict.INCONCLUSIVE, "clean accuracy"),
        # Not met, because canaries survived: a failure, also beside a trigger that was removed.
        (REMOVED, 0.86, drill(19, 1), Verdict.FAIL, "19 of 20"),
        (NO_TRIGGER, 0.86, drill(19, 1), Verdict.FAIL, "requires 86.0%"),
        # Not met, because too few took: open.
        (REMOVED, 0.86, drill(19, 0, 1), Verdict.INCONCLUSIVE, "it takes 20"),
        (NO_TRIGGER, 0.86, drill(0, 0, 20), Verdict.INCONCLUSIVE, "shows nothing"),
        # More canaries make up for survivors.
        (NO_TRIGGER, 0.86, drill(34, 1), Verdict.PASS, "clean accuracy"),
    ],
)
def test_what_a_drill_changes(trigger, required, drilled, expected, named):
    before, after = trigger
    verdict, reasons = judge_purification(
        BEFORE | before, AFTER | after, destroyed=None, policy=Policy(minimum_removal_bound=required), drill=drilled
    )
    assert verdict is expected
    assert named in reasons[0]
    if drilled is not None and verdict is not Verdict.FAIL:
        assert any("for the canary families drilled" in reason or "shows nothing" in reason for reason in reasons)


def test_a_destroyed_network_fails_whatever_the_drill_says():
    policy = Policy(minimum_removal_bound=0.86)
    verdict, _ = judge_purification(BEFORE, AFTER, destroyed="moved too far", policy=policy, drill=drill(20))
    assert verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("chances", "references", "expected", "named"),
    [
        ({"collapse_patch": 0.3, "collapse_perturbation": 0.5}, 5, Verdict.PASS, "no evidence"),
        ({"collapse_patch": 0.3, "collapse_perturbation": 0.01}, 5, Verdict.FAIL, "collapse_perturbation"),
        ({"collapse_patch": 0.3, "collapse_perturbation": 0.03}, 5, Verdict.PASS, "no evidence"),
        ({"collapse_patch": 0.0001}, 4, Verdict.INCONCLUSIVE, "4 clean references"),
        ({}, 5, Verdict.INCONCLUSIVE, "no measure"),
    ],
)
def test_a_scan_is_judged_by_its_chances_and_the_number_of_references(chances, references, expected, named):
    """Two measures share the 5 % evenly."""
    result, reasons = judge_scan(chances, references, [], Policy())
    assert result is expected
    assert named in reasons[0]
