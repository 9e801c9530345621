"""Symmetric cross-entropy: a loss that wrong labels pull less."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import one_hot

CLIP = 1e-4
"""Least probability of a class in the label, for its logarithm: the reverse term is at most ``-log(CLIP)``, 9.21."""


def symmetric_cross_entropy(logits: Tensor, targets: Tensor, *, alpha: float, beta: float) -> Tensor:
    """Symmetric cross-entropy of each sample (Wang et al., ICCV 2019, equation 7).

    ``alpha * CE + beta * RCE`` with ``CE = -sum_k q_k log p_k`` and ``RCE = -sum_k p_k log max(q_k, 1e-4)``. Of a hard
    label y, RCE is ``9.21 (1 - p_y)``: bounded, with a gradient that vanishes where a label is found impossible. Both
    terms fall as p_y grows, so that they rank the samples of one classifier alike; the difference lies in training.

    Differs from the paper: the logarithm of 0 is that of 1e-4, -9.21, as in the code that DBD uses; the paper says -4
    for CIFAR-10, which is the same as a smaller `beta`.

    Args:
        logits: (N, C).
        targets: (N,) int64 classes, or (N, C) probabilities.
        alpha: Weight of the cross-entropy.
        beta: Weight of the reverse cross-entropy.

    Returns:
        (N,), 0 or more.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[0.0, 0.0]])
        >>> symmetric_cross_entropy(logits, torch.tensor([1]), alpha=0.1, beta=1.0)
        tensor([4.6745])
    """
    if targets.ndim == 1:
        targets = one_hot(targets, logits.shape[1])
    wanted = targets.to(logits.dtype)
    found = logits.log_softmax(dim=1)
    forward = -(wanted * found).sum(dim=1)
    reverse = -(found.exp() * wanted.clamp(min=CLIP).log()).sum(dim=1)
    return alpha * forward + beta * reverse
