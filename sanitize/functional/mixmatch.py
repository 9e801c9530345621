"""MixMatch: labels are guessed for images that have none, and all images are mixed (Berthelot et al., NeurIPS 2019)."""

from __future__ import annotations

import torch
from scipy.special import betaincinv
from torch import Tensor


def sharpened(probabilities: Tensor, temperature: float) -> Tensor:
    """``p^(1 / T)``, normalised (equation 7).

    Args:
        probabilities: (N, C).
        temperature: T, above 0; 1 changes nothing, towards 0 the largest takes all.

    Returns:
        (N, C), probabilities.

    Example:
        >>> sharpened(torch.tensor([[0.8, 0.2]]), 0.5)
        tensor([[0.9412, 0.0588]])
    """
    return (probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log() / temperature).softmax(dim=1)


def mixing_share(concentration: float, generator: torch.Generator) -> float:
    """The larger part of a draw from Beta(concentration, concentration) (equations 8 and 9).

    Args:
        concentration: Above 0; towards 0 images are hardly mixed.
        generator: On the CPU.

    Returns:
        In [0.5, 1].

    Example:
        >>> 0.5 <= mixing_share(0.75, torch.Generator().manual_seed(0)) <= 1
        True
    """
    uniform = torch.rand((), generator=generator, dtype=torch.float64).item()
    share = float(betaincinv(concentration, concentration, uniform))
    return max(share, 1 - share)


def mixed(values: Tensor, order: Tensor, share: float) -> Tensor:
    """``share * v_i + (1 - share) * v_order(i)`` (equations 10 and 11), for images and for their targets.

    Args:
        values: (N, ...).
        order: (N,) int64, a permutation.
        share: In [0, 1].

    Example:
        >>> mixed(torch.tensor([1.0, 2.0]), torch.tensor([1, 0]), 0.75)
        tensor([1.2500, 1.7500])
    """
    return torch.lerp(values[order], values, share)
