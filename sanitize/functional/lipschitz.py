"""Channel Lipschitz constants of convolutions behind batch norm (Zheng et al., ECCV 2022, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor


def channel_lipschitz(weight: Tensor, scale: Tensor) -> Tensor:
    """Upper bound of each output channel's Lipschitz constant (Zheng et al. 2022, eq. 9): ``scale_k * sigma(W_k)``.

    ``W_k`` is the kernel of channel k as a matrix (C_in, kh * kw) and ``sigma`` its largest singular value, for all
    channels at once: the root of the largest eigenvalue of the smaller Gram matrix, which is at most kh * kw wide.
    This reshaping is the paper's surrogate, not the norm of the convolution as an operator.

    Args:
        weight: Kernels (C_out, C_in / groups, kh, kw).
        scale: Factor of each channel (C_out,), at least 0.

    Returns:
        (C_out,) float64, at least 0.

    Example:
        >>> channel_lipschitz(torch.eye(3).reshape(1, 3, 3, 1), torch.tensor([2.0]))
        tensor([2.], dtype=torch.float64)
    """
    kernels = weight.detach().float().flatten(start_dim=2)
    if kernels.shape[1] < kernels.shape[2]:
        kernels = kernels.transpose(1, 2)
    gram = kernels.transpose(1, 2) @ kernels  # in double many times slower, and no better in its largest eigenvalue
    largest = torch.linalg.eigvalsh(gram.double())[:, -1]
    norms: Tensor = scale.detach().double() * largest.clamp(min=0).sqrt()
    return norms


def deviations(values: Tensor) -> Tensor:
    """How many standard deviations (unbiased) each value (N,) lies above the mean; 0 where all are equal.

    Example:
        >>> deviations(torch.tensor([1.0, 2.0, 3.0]))
        tensor([-1.,  0.,  1.])
    """
    if len(values) < 2:
        return torch.zeros_like(values)
    spread = values.std()
    return torch.where(spread > 0, (values - values.mean()) / spread, torch.zeros_like(values))
