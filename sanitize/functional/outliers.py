"""Outliers by the median absolute deviation (Hampel; Wang et al., S&P 2019, section IV-B)."""

from __future__ import annotations

from torch import Tensor

MINIMUM = 4
"""Fewest values of which one can be called an outlier."""
_CONSISTENT = 1.4826  # makes the deviation that of a normal distribution; applied once


def small_deviations(values: Tensor) -> Tensor | None:
    """How far each value lies *below* the median, in (consistent) median absolute deviations.

    Args:
        values: (N,); NaN where there is no value.

    Returns:
        (N,), negative above the median, NaN where there is no value; None with fewer than four values, or where more
        than half of them are equal, so that nothing can be said.

    Example:
        >>> import torch
        >>> small_deviations(torch.tensor([1.0, 9.0, 10.0, 11.0, 12.0])).round(decimals=2)
        tensor([ 6.0700,  0.6700,  0.0000, -0.6700, -1.3500])
        >>> small_deviations(torch.tensor([1.0, 9.0, float("nan"), 11.0])) is None
        True
    """
    present = values[~values.isnan()].double()
    if len(present) < MINIMUM:
        return None
    median = present.quantile(0.5)
    spread = _CONSISTENT * (present - median).abs().quantile(0.5)
    if spread == 0:
        return None
    return ((median - values.double()) / spread).to(values.dtype)
