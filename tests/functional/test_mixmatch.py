"""The pieces of MixMatch against their formulas."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from sanitize.functional.mixmatch import mixed, mixing_share, sharpened


def test_sharpening_is_a_power_that_is_normalised():
    p = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    for temperature in (0.5, 1.0, 2.0):
        expected = p ** (1 / temperature)
        torch.testing.assert_close(sharpened(p, temperature), expected / expected.sum(dim=1, keepdim=True))
    assert bool((sharpened(p, 0.5).max(dim=1).values > p.max(dim=1).values).all())


def test_sharpening_takes_zeros():
    found = sharpened(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]]), 0.1)
    assert torch.equal(found, torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]]))


@pytest.mark.parametrize("concentration", [0.2, 0.75, 4.0])
def test_shares_are_the_larger_part_of_a_beta_draw(concentration):
    generator = torch.Generator().manual_seed(0)
    drawn = [mixing_share(concentration, generator) for _ in range(2000)]
    assert min(drawn) >= 0.5 and max(drawn) <= 1

    def folded(x):
        """Of max(v, 1 - v), v from Beta(a, a)."""
        return 2 * stats.beta.cdf(x, concentration, concentration) - 1

    assert stats.kstest(drawn, folded).pvalue > 0.01


def test_mixing_is_a_weighted_mean_with_the_partner():
    values = torch.rand(5, 3, 2, 2)
    order = torch.tensor([3, 0, 1, 4, 2])
    found = mixed(values, order, 0.7)
    for i in range(5):
        torch.testing.assert_close(found[i], 0.7 * values[i] + 0.3 * values[order[i]])
    assert torch.equal(mixed(values, order, 1.0), values)
