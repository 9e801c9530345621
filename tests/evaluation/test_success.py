"""Success rates against hand-counted examples."""

from __future__ import annotations

import pytest
import torch

from sanitize.errors import DataError
from sanitize.evaluation import success

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
TRIGGERED = torch.tensor([1, 0, 1, 1, 1, 2])
CLEAN = torch.tensor([0, 0, 1, 2, 1, 2])


def test_counted_by_hand():
    wanted = success.wanted_classes(LABELS, 1, classes=3)
    assert wanted.tolist() == [1] * 6
    assert success.clean_accuracy(CLEAN, LABELS) == pytest.approx(4 / 6)
    assert success.clean_accuracy_nontarget(CLEAN, LABELS, 1) == pytest.approx(3 / 4)
    assert success.attack_success_rate(TRIGGERED, LABELS, wanted) == pytest.approx(2 / 4)
    assert success.attack_success_rate_all(TRIGGERED, wanted) == pytest.approx(4 / 6)
    assert success.base_rate(CLEAN, LABELS, wanted) == pytest.approx(1 / 4)
    assert success.poison_accuracy(TRIGGERED, LABELS) == pytest.approx(4 / 6)


def test_all_to_all_counted_by_hand():
    wanted = success.wanted_classes(LABELS, "next", classes=3)
    assert wanted.tolist() == [1, 1, 2, 2, 0, 0]
    assert success.attack_success_rate(TRIGGERED, LABELS, wanted) == pytest.approx(1 / 6)
    assert success.attack_success_rate_all(TRIGGERED, wanted) == pytest.approx(1 / 6)
    assert success.base_rate(CLEAN, LABELS, wanted) == pytest.approx(1 / 6)


def test_only_target_images_cannot_be_measured():
    one = torch.tensor([1])
    with pytest.raises(DataError, match="target class 1"):
        success.attack_success_rate(one, one, one)
    with pytest.raises(DataError, match="target class 1"):
        success.clean_accuracy_nontarget(one, one, 1)
