"""One trigger after the other: the best windows may all show the same one, so what is left gets another look."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sanitize.detection.window_evidence import Evidence
from sanitize.detection.window_search import WindowSearch, ranking

_RECOGNISED = 0.5  # share of the best windows that a classifier must know before anything is removed by it
_FEWEST = 5  # windows that a later round rests on

Weigh = Callable[[WindowSearch, Tensor, int], Evidence]
"""Search, rows of the best windows, number of the round."""
Learn = Callable[[WindowSearch, Tensor, Tensor, Tensor, int], Tensor]
"""Search, rows by rank, rows of the best windows, which images are left (N,), number -> probability of poison (N,)."""


@dataclass(frozen=True)
class Round:
    """One look at the best windows.

    Args:
        top: (k,) int64, their rows.
        evidence: What they show.
        poison: (N,) float32, probability of the classifier that learned them; None without evidence.
    """

    top: Tensor
    evidence: Evidence
    poison: Tensor | None = None


def look_in_rounds(
    found: WindowSearch, *, top: int, most: int, minimum_score: float, weigh: Weigh, learn: Learn
) -> Iterator[Round]:
    """The best windows; then, while there is evidence, the best ones of the images that are left.

    These are tried anew: beside a stronger trigger, the windows of a weaker one were dropped early. What steers nothing
    by itself is no candidate of a later round, since the classifier would learn it as a trigger, too.

    Args:
        found: Windows that were tried; takes over what rounds with evidence find out.
        top: Windows of a round, at most.
        most: Rounds at most.
        minimum_score: Of each window of a later round.
        weigh: Gives the evidence.
        learn: Trains the poison classifier.

    Returns:
        The first round, and those after it that have evidence and a classifier that knows its windows.
    """
    search, left = found, torch.ones(len(found.values), dtype=torch.bool)
    for number in range(1, most + 1):
        ranked = ranking(search.values, search.flips)
        best = ranked[:top]
        if number > 1:
            best = best[search.values[best] >= minimum_score]
            if len(best) < _FEWEST:
                return
        evidence = weigh(search, best, number)
        if not evidence.convincing:
            if number == 1:
                yield Round(best, evidence)
            return
        poison = learn(search, ranked, best, left, number)
        known = recognised(poison, best)
        if number == 1 or known:
            found.adopt(search)
            yield Round(best, evidence, poison)
        left &= poison <= 0.5
        left[best] = False
        rows = torch.nonzero(left & (found.flips > 0)).flatten()
        if not known or number == most or len(rows) < 4 * top:
            return
        search = found.again(rows)


def recognised(poison: Tensor, top: Tensor) -> bool:
    """Whether a classifier knows the windows that it was taught, well enough to remove anything by it."""
    return int((poison[top] > 0.5).sum()) >= _RECOGNISED * len(top)
