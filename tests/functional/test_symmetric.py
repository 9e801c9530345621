"""Symmetric cross-entropy: against the formula by hand, its bounds, its gradient, and how it ranks."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from sanitize.functional.symmetric import CLIP, symmetric_cross_entropy

LOGITS = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)) * 3
LABELS = torch.arange(40) % 5


def sce(logits=LOGITS, targets=LABELS, *, alpha=0.3, beta=0.8):
    return symmetric_cross_entropy(logits, targets, alpha=alpha, beta=beta)


def test_it_is_the_formula():
    for row, label in enumerate(LABELS.tolist()):
        exponents = [math.exp(value) for value in LOGITS[row].tolist()]
        p = [value / sum(exponents) for value in exponents]
        q = [1.0 if k == label else 1e-4 for k in range(5)]
        reverse = -sum(p[k] * math.log(q[k]) for k in range(5))
        assert sce()[row].item() == pytest.approx(0.3 * -math.log(p[label]) + 0.8 * reverse, rel=1e-4)
        assert reverse == pytest.approx(9.2103 * (1 - p[label]), rel=1e-4)


def test_its_parts_are_cross_entropy_and_a_bounded_reverse():
    torch.testing.assert_close(sce(alpha=1.0, beta=0.0), cross_entropy(LOGITS, LABELS, reduction="none"))
    sure = torch.tensor([[50.0, 0.0], [-50.0, 0.0]])
    reverse = sce(sure, torch.tensor([0, 0]), alpha=0.0, beta=1.0)
    assert reverse.tolist() == pytest.approx([0.0, -math.log(CLIP)], abs=1e-4)
    assert bool((sce(alpha=0.0, beta=1.0) >= 0).all())


def test_targets_may_be_probabilities():
    hard = one_hot(LABELS, 5).float()
    torch.testing.assert_close(sce(), sce(targets=hard))
    soft = torch.tensor([[0.7, 0.3, 0.0]])
    p = torch.tensor([[0.2, 0.5, 0.3]])
    expected = -(0.7 * math.log(0.2) + 0.3 * math.log(0.5)) * 0.3
    expected += -(0.2 * math.log(0.7) + 0.5 * math.log(0.3) + 0.3 * math.log(1e-4)) * 0.8
    assert sce(p.log(), soft).item() == pytest.approx(expected, rel=1e-4)


def test_the_gradient_is_right_and_lets_wrong_labels_go():
    logits = LOGITS[:4].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda given: sce(given, LABELS[:4]), logits)
    wrong = torch.tensor([[-12.0, 0.0]], requires_grad=True)
    sizes = []
    for alpha, beta in ((1.0, 0.0), (0.0, 1.0)):
        (gradient,) = torch.autograd.grad(sce(wrong, torch.tensor([0]), alpha=alpha, beta=beta).sum(), wrong)
        assert gradient[0, 0] < 0 < gradient[0, 1]  # towards the label
        sizes.append(gradient.abs().max().item())
    assert sizes[0] > 0.99 and sizes[1] < 1e-3


def test_it_ranks_the_samples_of_a_classifier_as_cross_entropy_does():
    assert torch.equal(sce().argsort(), cross_entropy(LOGITS, LABELS, reduction="none").argsort())
