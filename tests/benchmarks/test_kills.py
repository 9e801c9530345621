"""The benchmark of kills: which methods get how many, and that they run short."""

from __future__ import annotations

import pytest

from benchmarks.kills import MOST_OF, SETTINGS, shares
from sanitize.defenses import DEFENSES, Purifier

PURIFIERS = [name for name, defense in DEFENSES.items() if issubclass(defense, Purifier)]


def test_fifty_kills_reach_every_method():
    given = shares(50, PURIFIERS)
    assert sum(given.values()) == 50
    assert given[MOST_OF] == 15
    assert set(given) == set(PURIFIERS)
    assert min(given.values()) >= 3


def test_fewer_methods_share_all_kills():
    assert shares(3, [MOST_OF]) == {MOST_OF: 3}
    assert shares(5, ["clp", "uau"]) == {"clp": 3, "uau": 2}


@pytest.mark.parametrize("name", PURIFIERS)
def test_every_method_has_settings_of_a_short_run(name):
    assert DEFENSES[name](**SETTINGS[name]) != DEFENSES[name]()
