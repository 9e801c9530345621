"""Counts and the exact bound of a drill, against a slow reference; what counts as survived, removed or not taken."""

from __future__ import annotations

from math import comb

import pytest

from sanitize.evaluation.removal import CanaryOutcome, DrillResult, canaries_needed, removal_bound


def canary(family: str = "patch", **changes) -> CanaryOutcome:
    values = {"taken": True, "planted_success_rate": 1.0, "success_rate": 0.1, "base_rate": 0.1}
    values |= {"clean_accuracy_loss": 0.01} | changes
    return CanaryOutcome(family=family, trigger="", target=3, attempts=1, **values)


NOT_TAKEN = canary(taken=False, success_rate=None, base_rate=None, clean_accuracy_loss=None)
STOPPED = canary(success_rate=None, base_rate=None, clean_accuracy_loss=None, stopped="no cluster")


@pytest.mark.parametrize(("removed", "planted"), [(20, 20), (17, 20), (1, 3), (58, 59), (1, 1)])
def test_at_the_bound_so_many_removals_have_a_chance_of_five_per_cent(removed, planted):
    rate = removal_bound(removed, planted)
    tail = sum(comb(planted, n) * rate**n * (1 - rate) ** (planted - n) for n in range(removed, planted + 1))
    assert tail == pytest.approx(0.05, abs=1e-6)


def test_the_bound_at_its_edges():
    assert removal_bound(0, 5) == 0
    assert removal_bound(20, 20) == pytest.approx(0.05 ** (1 / 20))
    assert round(removal_bound(20, 20), 2) == 0.86
    assert removal_bound(19, 20) < removal_bound(20, 20) < removal_bound(21, 21)


def test_the_bound_holds_as_often_as_it_says():
    """Exact coverage: over all outcomes of a drill, the true rate is above the bound with 95 % at least."""
    for rate in (0.3, 0.8, 0.9, 0.97):
        covered = sum(
            comb(20, removed) * rate**removed * (1 - rate) ** (20 - removed)
            for removed in range(21)
            if removal_bound(removed, 20) <= rate
        )
        assert covered >= 0.95


@pytest.mark.parametrize("bound", [0.3, 0.86, 0.9, 0.95])
def test_the_number_needed_is_the_smallest(bound):
    count = canaries_needed(bound)
    assert removal_bound(count, count) >= bound
    assert count == 1 or removal_bound(count - 1, count - 1) < bound


@pytest.mark.parametrize(
    ("made", "outcome"),
    [
        (canary(), "removed"),
        (canary(success_rate=0.29), "removed"),
        (canary(success_rate=0.3), "survived"),  # 0.3 - 0.1 is a little below 0.2 in binary
        (canary(success_rate=0.3, base_rate=0.2), "removed"),
        (canary(stopped="clean features moved too far"), "survived"),
        (STOPPED, "survived"),
        (NOT_TAKEN, "not taken"),
    ],
)
def test_twenty_points_above_the_base_rate_is_survival(made, outcome):
    assert made.outcome == outcome


def test_what_did_not_take_is_in_no_count_but_its_own():
    drill = DrillResult((canary(), canary("blend", success_rate=0.9, clean_accuracy_loss=0.03), NOT_TAKEN, STOPPED))
    assert drill.metrics == {
        "drill/planted": 3,
        "drill/not_taken": 1,
        "drill/survived": 2,
        "drill/removal_rate": pytest.approx(1 / 3),
        "drill/removal_bound": removal_bound(1, 3),
        "drill/clean_accuracy_loss": pytest.approx(0.02),
    }
    assert drill.unmeasured == {}
    assert "1 of 3 canaries removed (1 more did not take" in drill.statement
    assert "(patch, blend) and no others" in drill.statement
    assert [item["outcome"] for item in drill.to_dict()["canaries"]] == ["removed", "survived", "not taken", "survived"]


def test_a_drill_in_which_nothing_took_shows_nothing():
    drill = DrillResult((NOT_TAKEN, NOT_TAKEN))
    assert drill.bound is None
    assert drill.metrics["drill/removal_rate"] is None
    assert set(drill.unmeasured) == {"drill/removal_rate", "drill/removal_bound", "drill/clean_accuracy_loss"}
    assert "shows nothing" in drill.statement


def test_a_family_that_never_took_is_not_in_the_statement():
    drill = DrillResult((canary(), canary("blend", taken=False)))
    assert drill.families == ["patch"]
