"""Unlikelihood: a bounded way of making a label less likely."""

from __future__ import annotations

import torch
from torch import Tensor


def unlikelihood(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of ``-log(1 - p_y)`` over the images whose label y is likelier than by chance, and the share of these.

    The loss raises the loss on y as gradient ascent does, but is bounded below by 0, and its gradient by the logit of y
    is p_y: large where the network is sure. An image is left alone once ``p_y <= 1 / C``. To stop as soon as y is not
    the answer would leave it the runner-up, by a hair on the images seen, and the answer again on others.

    Args:
        logits: (N, C), C 2 or more.
        labels: (N,) y.

    Returns:
        Scalar, 0 or more (0 where no label is likelier than by chance); scalar in [0, 1].

    Example:
        >>> unlikelihood(torch.tensor([[9.0, 0.0], [0.0, 9.0]]), torch.tensor([0, 0]))
        (tensor(9.0001), tensor(0.5000))
    """
    logits = logits.float()  # 1 - p of a confident network is 0 in half precision
    others = logits.scatter(1, labels[:, None], -torch.inf)
    total = logits.logsumexp(dim=1)
    values = total - others.logsumexp(dim=1)
    chances = (logits.gather(1, labels[:, None])[:, 0] - total).exp()
    likely = (chances > 1 / logits.shape[1]).float()
    return (values * likely).sum() / likely.sum().clamp_min(1), likely.mean()
