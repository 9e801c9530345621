"""Trigger inversion: pasting, the controller against a plain walk, similarity against loops; and outliers."""

from __future__ import annotations

import pytest
import torch

from sanitize.functional.inversion import Controller, Triggers, off_diagonal_similarity, paste
from sanitize.functional.outliers import small_deviations


def triggers(count: int = 1, **options) -> Triggers:
    control = {"start": 0.0, "first": 1.0, "up": 2.0, "down": 4.0, "patience": 2} | options
    return Triggers(count, 4, Controller(**control), torch.Generator().manual_seed(0))


def test_pasting_is_the_formula_for_each_pair():
    generator = torch.Generator().manual_seed(0)
    masks, patterns = torch.rand(2, 1, 4, 4, generator=generator), torch.rand(2, 3, 4, 4, generator=generator)
    images = torch.rand(5, 3, 4, 4, generator=generator)
    found = paste(masks, patterns, images)
    for target in range(2):
        for number in range(5):
            mask, pattern = masks[target], patterns[target]
            torch.testing.assert_close(found[target, number], (1 - mask) * images[number] + mask * pattern)


def test_masks_and_patterns_stay_in_range():
    made = triggers()
    made.mask_logits.data.mul_(100)
    assert 0 <= made.masks.min() < 1e-6 and 1 - 1e-6 < made.masks.max() <= 1
    assert made.patterns.min() >= 0 and made.patterns.max() <= 1


def walk(successes, control):
    """The controller as a plain loop over one target."""
    weight, wins, losses, seen = control.start, 0, 0, []
    for success in successes:
        wins, losses = (wins + 1, 0) if success else (0, losses + 1)
        if wins == control.patience:
            weight, wins = (control.first if weight == 0 else min(weight * control.up, control.largest)), 0
        elif losses == control.patience:
            weight, losses = weight / control.down, 0
        seen.append(weight)
    return seen


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_weights_follow_success_as_in_a_plain_walk(start):
    made = triggers(3, start=start, largest=6.0)
    worked = torch.rand(60, 3, generator=torch.Generator().manual_seed(1)) < torch.tensor([0.5, 0.8, 0.3])
    seen = []
    for step in worked:
        made.record(step)
        seen.append(made.weights)
    for target in range(3):
        assert torch.stack(seen)[:, target].tolist() == walk(worked[:, target].tolist(), made.controller)


def test_the_smallest_that_worked_is_kept():
    made, sizes = triggers(), []
    for shift, worked in ((0.0, True), (-2.0, False), (-0.5, True), (1.0, True)):
        made.mask_logits.data.add_(shift)
        sizes.append(made.sizes().item())
        made.record(torch.tensor([worked]))
    assert made.best_sizes.item() == sizes[2] == min(sizes[0], sizes[2], sizes[3])
    assert made.best_masks.mean().item() == pytest.approx(sizes[2])


def test_nothing_that_failed_is_kept():
    made = triggers()
    made.record(torch.tensor([False]))
    assert made.best_sizes.item() == float("inf")


def test_all_state_is_in_the_state_dict():
    made, other = triggers(), triggers()
    for worked in (True, True, False):
        made.record(torch.tensor([worked]))
    other.load_state_dict(made.state_dict())
    assert other.weights == made.weights == 1.0 and other.runs == made.runs == -1
    assert torch.equal(other.best_masks, made.best_masks)


def test_similarity_is_that_of_all_pairs():
    features = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    found = off_diagonal_similarity(features)
    for target in range(2):
        pairs = [
            torch.nn.functional.cosine_similarity(features[target, a], features[target, b], dim=0)
            for a in range(5)
            for b in range(5)
            if a != b
        ]
        torch.testing.assert_close(found[target], torch.stack(pairs).mean())


def test_equal_features_have_similarity_one():
    assert off_diagonal_similarity(torch.ones(1, 4, 3)).item() == pytest.approx(1.0)


def test_deviations_are_those_of_the_papers_index():
    values = torch.tensor([2.0, 10.0, 11.0, 12.0, 13.0, 14.0, 30.0])
    # median 12, absolute deviations 10 2 1 0 1 2 18, their median 2
    assert small_deviations(values)[0].item() == pytest.approx(10 / (1.4826 * 2))
    assert small_deviations(values)[-1].item() < 0


def test_missing_values_are_left_out():
    values = torch.tensor([2.0, float("nan"), 10.0, 11.0, 12.0, 13.0, 14.0, 30.0])
    found = small_deviations(values)
    assert found[1].isnan()
    torch.testing.assert_close(found[~found.isnan()], small_deviations(values[~values.isnan()]))


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0], [1.0, 5.0, 5.0, 5.0, 5.0], [float("nan")] * 6])
def test_too_few_or_equal_values_tell_nothing(values):
    assert small_deviations(torch.tensor(values)) is None
