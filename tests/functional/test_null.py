"""The prediction interval: against simulation, its sides, its edges."""

from __future__ import annotations

import math
import random

import pytest

from sanitize.functional.null import exceedance


@pytest.mark.parametrize("count", [2, 5, 12])
def test_clean_numbers_are_called_suspicious_at_the_rate_that_was_asked_for(count):
    """2,000 draws from one logit-normal population: 5 % of chances are below 5 %."""
    source = random.Random(count)

    def draw() -> float:
        return 1 / (1 + math.exp(-source.gauss(-1.8, 0.3)))

    alarms = sum(exceedance(draw(), [draw() for _ in range(count)], "low") < 0.05 for _ in range(2000))
    assert 0.035 <= alarms / 2000 <= 0.065


def test_sides_mirror_each_other():
    null = [0.14, 0.15, 0.13, 0.16, 0.15]
    for value in (0.02, 0.12, 0.15, 0.5):
        assert exceedance(value, null, "low") + exceedance(value, null, "high") == pytest.approx(1)
    chances = [exceedance(value, null, "low") for value in (0.02, 0.08, 0.12, 0.15, 0.3)]
    assert chances == sorted(chances)


def test_more_numbers_make_it_surer():
    null = [0.14, 0.15, 0.13]
    assert exceedance(0.08, null * 4, "low") < exceedance(0.08, null, "low")


def test_equal_numbers():
    assert exceedance(0.1, [0.2, 0.2], "low") == 0
    assert exceedance(0.3, [0.2, 0.2], "low") == 1
    assert exceedance(0.2, [0.2, 0.2], "low") == 0.5


def test_shares_at_the_edges_are_finite():
    assert 0 <= exceedance(0.0, [0.0, 0.1], "low") <= 1
    assert 0 <= exceedance(1.0, [1.0, 0.9], "high") <= 1


def test_one_number_is_no_null():
    with pytest.raises(ValueError, match="two"):
        exceedance(0.1, [0.2], "low")
