"""Every purification on the same two encoders: removes the backdoor, leaves the clean one alone, keeps accuracy.

To add a defence: one row.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from sanitize import BMAIU
from sanitize.defenses import DEFENSES, Purifier
from sanitize.training import Engine
from tests.encoders import defender_images


@dataclass(frozen=True)
class Row:
    """What is expected of a defence on the demo's encoders."""

    defense: Purifier
    attack_success_rate: float  # at most, after
    accuracy_loss: float  # at most


ROWS = [Row(BMAIU(), attack_success_rate=0.10, accuracy_loss=0.02)]
pytestmark = pytest.mark.slow


def test_every_purifier_has_a_row():
    assert {row.defense.name for row in ROWS} == {
        name for name, defense in DEFENSES.items() if issubclass(defense, Purifier)
    }


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.defense.name)
def test_the_backdoor_is_removed(row, encoders):
    engine = Engine(device="cpu")
    before = encoders.evaluator.measure(encoders.backdoored, engine)
    result = row.defense.purify(encoders.backdoored, defender_images(), engine)
    after = encoders.evaluator.measure(result.network, engine)
    assert before.metrics["attack_success_rate"] >= 0.95
    assert result.destroyed is None
    assert after.metrics["attack_success_rate"] <= row.attack_success_rate
    assert after.metrics["poison_accuracy"] > before.metrics["poison_accuracy"] + 0.5
    assert before.metrics["clean_accuracy"] - after.metrics["clean_accuracy"] <= row.accuracy_loss


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.defense.name)
def test_a_clean_encoder_is_left_alone(row, encoders):
    engine = Engine(device="cpu")
    before = encoders.evaluator.measure(encoders.clean, engine)
    result = row.defense.purify(encoders.clean, defender_images(), engine)
    after = encoders.evaluator.measure(result.network, engine)
    assert result.destroyed is None
    assert before.metrics["clean_accuracy"] - after.metrics["clean_accuracy"] <= row.accuracy_loss
    assert after.metrics["attack_success_rate"] <= 0.10
