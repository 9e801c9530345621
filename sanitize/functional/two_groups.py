"""Whether the scores of a class fall into two groups, by themselves or as those of no other class do."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student_t
from sklearn.mixture import GaussianMixture
from torch import Tensor

MINIMUM_GROUP = 50  # images that a mixture of two is fitted to; smaller classes are not judged
BIC_GAIN = 2.0  # "positive" on the scale of Kass and Raftery, J. Am. Stat. Assoc. 90, 1995
USUAL_CLASSES = 10  # for so many classes; each further one is a chance more to find what is not there
STRONG_GAIN = 10.0  # "very strong" on that scale
MINIMUM_OTHERS = 4  # classes that one class is compared with
OVERLAPPING = 1.0  # Ashman's D below which the two distributions are one with a heavy tail
SMALLER = 0.05  # share of a class that the smaller group must have: a mixture also takes a few outliers for a group
POISONED, CLEAN = 0.9, 0.05  # posterior of the upper component
LIKELY = 0.5  # where the two overlap so much that the posterior does not reach POISONED
EVEN, MOSTLY_UPPER = (0.25, 0.75), (0.02, 0.3)  # quantiles at which the two means begin


class TwoGroups(NamedTuple):
    """Two normal distributions of the logarithms of scores, compared with one.

    Args:
        gain: Of the BIC, by two.
        separation: Ashman's D (Ashman, Bird, Zepf, Astron. J. 108, 1994); above 2 they lie apart.
        smaller: Weight of the smaller one.
        clean_to: Scores up to here hardly belong to the upper one.
        poisoned_from: Scores from here on belong to it.
    """

    gain: float
    separation: float
    smaller: float
    clean_to: float
    poisoned_from: float

    def apart(self, separation: float, classes: int = USUAL_CLASSES) -> bool:
        """Whether there are two groups with a gap between them, in one of so many classes.

        A gain is twice the logarithm of odds: with ten times the classes the odds must be ten times as good.
        """
        least = BIC_GAIN + 2 * math.log(max(1.0, classes / USUAL_CLASSES))
        return self.gain >= least and self.separation >= separation and self.smaller >= SMALLER


def stands_out(label: int, mixtures: dict[int, TwoGroups], significance: float) -> bool:
    """Whether two distributions explain one class so much better than they explain the others.

    Without poison the gains of all classes come from one distribution, whatever the shape of clean scores is: a new
    one lies among them by Student's t. The level is divided by the number of classes (Bonferroni).

    Args:
        label: The class.
        mixtures: Of all classes that could be fitted, that one too.
        significance: Level, over all classes.
    """
    mixture = mixtures[label]
    others = [other.gain for name, other in mixtures.items() if name != label]
    if len(others) < MINIMUM_OTHERS or mixture.gain < STRONG_GAIN or mixture.smaller < SMALLER:
        return False
    if mixture.separation < OVERLAPPING:
        return False
    distance = (mixture.gain - np.mean(others)) / (np.std(others, ddof=1) * np.sqrt(1 + 1 / len(others)))
    return bool(len(mixtures) * student_t.sf(distance, len(others) - 1) <= significance)


def two_groups(values: Tensor, *, also_in_the_tail: bool = False) -> TwoGroups | None:
    """Fit one and two normal distributions to the logarithms of scores.

    Args:
        values: (N,) scores; those that are 0 are left out.
        also_in_the_tail: Two begin at the quartiles. Where most scores belong to the upper group, that ends in two
            halves of it; a start in the lower tail is tried as well, and the likelier end taken. A class of clean
            scores that is skewed to the left may fall apart then.

    Returns:
        None for fewer than `MINIMUM_GROUP` scores, or where all are equal.

    Example:
        >>> import torch
        >>> logs = torch.randn(400, generator=torch.Generator().manual_seed(0)) + 6 * (torch.arange(400) < 80)
        >>> fitted = two_groups(logs.exp())
        >>> fitted.apart(2.0), round(fitted.smaller, 1)
        (True, 0.2)
    """
    logs = values[values > 0].log().numpy()[:, None]
    if len(logs) < MINIMUM_GROUP or float(np.ptp(logs)) == 0.0:
        return None
    one = GaussianMixture(1).fit(logs)
    starts = (EVEN, MOSTLY_UPPER) if also_in_the_tail else (EVEN,)
    two = min((_mixture(logs, start) for start in starts), key=lambda mixture: float(mixture.bic(logs)))
    means, variances = two.means_[:, 0], two.covariances_[:, 0, 0]
    upper = int(means.argmax())
    between = np.linspace(means.min(), means.max(), 1001)
    posterior = two.predict_proba(between[:, None])[:, upper]
    sure = POISONED if posterior.max() > POISONED else LIKELY
    return TwoGroups(
        gain=float(one.bic(logs) - two.bic(logs)),
        separation=float(np.ptp(means) * np.sqrt(2 / variances.sum())),
        smaller=float(two.weights_.min()),
        clean_to=float(np.exp(between[max(0, int((posterior > CLEAN).argmax()) - 1)])),
        poisoned_from=float(np.exp(between[int((posterior > sure).argmax())])),
    )


def _mixture(logs: npt.NDArray[np.float64], start: tuple[float, float]) -> GaussianMixture:
    """Two normal distributions; the seed is of the k-means that guesses the first weights."""
    narrowest = 0.01 * float(logs.var())  # or a few equal scores would make a group
    means = np.quantile(logs, start)[:, None]
    return GaussianMixture(2, means_init=means, max_iter=500, reg_covar=narrowest, random_state=0).fit(logs)
