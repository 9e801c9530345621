"""Cosine similarities between sets of features; every loss on features here is built from them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def mean_similarity(first: Tensor, second: Tensor) -> Tensor:
    """Mean cosine similarity of matching rows.

    Args:
        first: Features (N, D).
        second: Features (N, D).

    Returns:
        Scalar in [-1, 1].

    Example:
        >>> import torch
        >>> mean_similarity(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.0]]))
        tensor(1.)
    """
    return F.cosine_similarity(first, second, dim=1).mean()


def centred_similarity(first: Tensor, second: Tensor) -> Tensor:
    """Cosine similarity of matching rows after each set's own mean is taken away: (N,) in [-1, 1].

    Features behind a ReLU all point the same way, so that plain cosines stay near 1 even for a destroyed encoder;
    centred ones fall.

    Args:
        first: Features (N, D).
        second: Features (N, D).
    """
    return F.cosine_similarity(first - first.mean(dim=0), second - second.mean(dim=0), dim=1)
