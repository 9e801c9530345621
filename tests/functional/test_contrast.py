"""InfoNCE against a slow loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sanitize.functional.contrast import contrast


def _vectors(seed: int, count: int = 6, size: int = 5) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow(queries: Tensor, keys: Tensor, temperature: float, labels: list[dict[int, float]]) -> float:
    """Mean over queries of -sum of label weight * log softmax, one number at a time."""
    total = 0.0
    for query, weights in zip(queries, labels, strict=True):
        cosines = [float(query @ key / (query.norm() * key.norm())) / temperature for key in keys]
        normalizer = math.log(sum(math.exp(value) for value in cosines))
        total -= sum(weight * (cosines[index] - normalizer) for index, weight in weights.items())
    return total / len(queries)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_it_equals_a_slow_loop(temperature: float) -> None:
    queries, keys = _vectors(0), _vectors(1)
    expected = slow(queries, keys, temperature, [{index: 1.0} for index in range(6)])
    assert float(contrast(queries, keys, temperature=temperature)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("weight", [0.5, 0.8, 1.0])
def test_mixed_labels_equal_a_slow_loop(weight: float) -> None:
    queries, keys = _vectors(0), _vectors(1)
    partner = [2, 1, 0, 5, 3, 4]  # one of them is its own partner
    labels = [{own: 1.0} if own == other else {own: weight, other: 1 - weight} for own, other in enumerate(partner)]
    found = contrast(queries, keys, temperature=0.2, partner=torch.tensor(partner), weight=weight)
    assert float(found) == pytest.approx(slow(queries, keys, 0.2, labels), rel=1e-9)


def test_it_is_small_where_each_query_is_its_key_and_only_there() -> None:
    keys = torch.eye(8)
    assert 0 <= contrast(keys, keys, temperature=0.05) < 1e-6
    assert contrast(keys.roll(1, dims=0), keys, temperature=0.05) > 19
    assert contrast(keys[:1].expand(8, -1), keys[:1].expand(8, -1), temperature=0.05) == pytest.approx(math.log(8))


def test_lengths_do_not_matter_and_the_gradient_pulls_a_query_to_its_key() -> None:
    queries, keys = _vectors(0).requires_grad_(), _vectors(1)
    loss = contrast(queries, keys, temperature=0.5)
    assert contrast(3 * queries, 0.1 * keys, temperature=0.5).item() == pytest.approx(loss.item())
    (gradient,) = torch.autograd.grad(loss, queries)
    moved = contrast(queries - 0.1 * gradient, keys, temperature=0.5)
    assert moved < loss
