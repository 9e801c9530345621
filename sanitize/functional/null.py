"""Is one number out of line with a few others? A prediction interval, on the logit scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from scipy import stats

_EDGE = 1e-3  # shares closer to 0 or 1 than this count as this far away


def exceedance(value: float, null: Sequence[float], side: Literal["high", "low"]) -> float:
    """Chance that one more clean number is at least as extreme as `value`, if `null` are clean numbers.

    With k numbers of mean m and deviation s, ``(x - m) / (s sqrt(1 + 1/k))`` of a further one has Student's
    distribution with k - 1 degrees of freedom, if the numbers are normal; shares are made nearly so by their logit.

    Args:
        value: The number in question, a share.
        null: Two clean numbers or more.
        side: Which values are out of line.

    Returns:
        In [0, 1]; for equal null numbers 0 or 1, or 0.5 where the value equals them.

    Raises:
        ValueError: Fewer than two numbers.

    Example:
        >>> exceedance(0.02, [0.14, 0.15, 0.13, 0.16, 0.15], "low") < 0.001
        True
        >>> exceedance(0.145, [0.14, 0.15, 0.13, 0.16, 0.15], "low") > 0.3
        True
    """
    if len(null) < 2:
        raise ValueError("a null distribution needs two numbers or more")
    numbers = [_logit(number) for number in null]
    count = len(numbers)
    mean = math.fsum(numbers) / count
    deviation = math.sqrt(math.fsum((number - mean) ** 2 for number in numbers) / (count - 1))
    distance = (_logit(value) - mean) * (1 if side == "high" else -1)
    if deviation == 0:
        return 0.5 if distance == 0 else float(distance < 0)
    return float(stats.t.sf(distance / (deviation * math.sqrt(1 + 1 / count)), df=count - 1))


def _logit(share: float) -> float:
    share = min(max(share, _EDGE), 1 - _EDGE)
    return math.log(share / (1 - share))
