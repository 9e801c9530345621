"""InfoNCE: which of all keys belongs to a query, with mixed labels where queries are mixed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize


def contrast(
    queries: Tensor, keys: Tensor, *, temperature: float, partner: Tensor | None = None, weight: float = 1.0
) -> Tensor:
    """Cross-entropy of picking each query's own key among all keys by cosine.

    MoCo v3's ``ctr`` (Chen, Xie, He; ICCV 2021, algorithm 1) without its factor of twice the temperature. With
    `partner` the labels are i-Mix's (Lee et al., ICLR 2021): ``weight`` for the own key, the rest for the
    partner's.

    Args:
        queries: (N, D); row i belongs to row i of `keys`.
        keys: (N, D).
        temperature: Divides the cosines; above 0.
        partner: (N,) int64: whose image is mixed into that of each query.
        weight: Share of a query's image that is its own, in [0, 1].

    Returns:
        Scalar, 0 or more.

    Example:
        >>> keys = torch.eye(4)
        >>> float(contrast(keys, keys, temperature=0.1)) < float(contrast(keys, keys.flip(0), temperature=0.1))
        True
    """
    logits = normalize(queries) @ normalize(keys).T / temperature
    own = cross_entropy(logits, torch.arange(len(queries), device=logits.device))
    if partner is None:
        return own
    return weight * own + (1 - weight) * cross_entropy(logits, partner)
