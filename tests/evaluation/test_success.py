"""Success rates against hand-counted examples, and the verdict's logic."""

from __future__ import annotations

import pytest
import torch

from sanitize.errors import DataError
from sanitize.evaluation import success

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
TRIGGERED = torch.tensor([1, 0, 1, 1, 1, 2])
CLEAN = torch.tensor([0, 0, 1, 2, 1, 2])


def test_counted_by_hand():
    assert success.clean_accuracy(CLEAN, LABELS) == pytest.approx(4 / 6)
    assert success.attack_success_rate(TRIGGERED, LABELS, 1) == pytest.approx(2 / 4)
    assert success.attack_success_rate_all(TRIGGERED, 1) == pytest.approx(4 / 6)
    assert success.base_rate(CLEAN, LABELS, 1) == pytest.approx(1 / 4)
    assert success.poison_accuracy(TRIGGERED, LABELS) == pytest.approx(4 / 6)


def test_only_target_images_cannot_be_measured():
    with pytest.raises(DataError, match="target class 1"):
        success.attack_success_rate(torch.tensor([1]), torch.tensor([1]), 1)
