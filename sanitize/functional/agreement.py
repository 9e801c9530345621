"""Do small pictures show the same thing, wherever it lies in them?"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_LARGEST = 12  # px a side that windows are reduced to: what is alike is still seen, and the cost stays bounded
_CHUNK = 100  # windows that are compared together
_FLOOR = 0.02  # distance below which windows are as near as can be: noise and compression


def likeness(windows: Tensor, others: Tensor, colour: Tensor) -> Tensor:
    """Best cosine between the middle of a window and any part of that size of another.

    Pixels count from the mean colour of the data, so that plain windows of a rare colour are alike as well.

    Args:
        windows: (K, 3, w, w).
        others: (M, 3, w, w).
        colour: (3,), mean of the data in the same range.

    Returns:
        (K, M) in [-1, 1].
    """
    parts = []
    for given in (windows, others):
        centred = given.float() - colour.view(1, 3, 1, 1)
        if centred.shape[-1] > _LARGEST:
            centred = functional.adaptive_avg_pool2d(centred, _LARGEST)
        core = centred.shape[-1] - 2 * (centred.shape[-1] // 4)
        parts.append(functional.normalize(functional.unfold(centred, core), dim=1))  # (., 3 core core, shifts)
    middle = parts[0][:, :, parts[0].shape[2] // 2]
    return torch.cat([(middle @ some).amax(dim=2).T for some in torch.split(parts[1], _CHUNK)], dim=1)


def agreement(windows: Tensor, others: Tensor, colour: Tensor) -> float:
    """How many times nearer windows are to the nearest of themselves than to the nearest of others.

    Nearest: a fifth of the windows, and as many of the others, by ``1 - likeness``. A fifth, not all: poison with
    several triggers gives groups of windows that agree among themselves. The others may be many more: then something
    common, as a black background, is no nearer to itself than to them.

    Args:
        windows: (K, 3, w, w), K at least 2.
        others: (M, 3, w, w), M at least K.
        colour: (3,), mean of the data in the same range.

    Returns:
        Geometric mean over the windows; above 0, below 1 where windows have nothing in common.

    Example:
        >>> random = torch.rand(60, 3, 9, 9, generator=torch.Generator().manual_seed(0))
        >>> agreement(random[:1].expand(10, -1, -1, -1), random[10:], torch.full((3,), 0.5)) > 10
        True
        >>> agreement(random[:10], random[10:], torch.full((3,), 0.5)) < 1
        True
    """
    return nearness(likeness(windows, windows, colour), likeness(windows, others, colour))


def nearness(own: Tensor, others: Tensor) -> float:
    """`agreement` from likenesses among the windows (K, K), whose diagonal does not count, and to others (K, M)."""
    nearest = max(1, len(own) // 5)
    among = own.masked_fill(torch.eye(len(own), dtype=torch.bool, device=own.device), -torch.inf)
    apart, elsewhere = (1 - alike.topk(nearest, dim=1).values.mean(dim=1) for alike in (among, others))
    return float(((elsewhere + _FLOOR) / (apart + _FLOOR)).log().mean().exp())
