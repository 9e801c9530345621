"""The linear probe and the neighbour vote on features whose answer is known."""

from __future__ import annotations

import pytest
import torch

from sanitize.errors import DataError
from sanitize.evaluation import LinearProbe, knn_accuracy


def blobs(seed: int, count: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    return 3 * torch.eye(3)[labels] + 0.3 * torch.randn(count, 3, generator=generator), labels


def test_the_probe_separates_blobs_and_does_not_care_for_their_scale():
    (train, labels), (test, truth) = blobs(0), blobs(1)
    predicted = LinearProbe.fit(train, labels).predict(test)
    assert float((predicted == truth).float().mean()) > 0.98
    scaled = LinearProbe.fit(train * 1000 + 5, labels).predict(test * 1000 + 5)
    assert torch.equal(predicted, scaled)


def test_the_probe_needs_two_classes():
    with pytest.raises(DataError, match="two classes"):
        LinearProbe.fit(torch.randn(4, 2), torch.zeros(4, dtype=torch.long))


def slow_knn(features, labels, bank, bank_labels, k, temperature):
    hits = 0
    for feature, label in zip(features, labels, strict=True):
        similarities = [float(torch.dot(feature, other) / feature.norm() / other.norm()) for other in bank]
        order = sorted(range(len(bank)), key=lambda i: -similarities[i])[:k]
        votes: dict[int, float] = {}
        for i in order:
            weight = torch.tensor(similarities[i] / temperature).exp().item()
            votes[int(bank_labels[i])] = votes.get(int(bank_labels[i]), 0.0) + weight
        hits += max(votes, key=lambda name: votes[name]) == int(label)
    return hits / len(features)


def test_knn_equals_a_plain_loop():
    generator = torch.Generator().manual_seed(3)
    bank, bank_labels = torch.randn(30, 4, generator=generator), torch.arange(30) % 3
    features, labels = torch.randn(20, 4, generator=generator), torch.arange(20) % 3
    expected = slow_knn(features, labels, bank, bank_labels, k=10, temperature=0.1)
    assert knn_accuracy(features, labels, bank, bank_labels, temperature=0.1) == pytest.approx(expected)
