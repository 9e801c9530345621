"""Is there poison at all? The best windows against windows from random places of the same images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sanitize.functional.agreement import agreement, likeness, nearness
from sanitize.functional.masks import cut

DRAWS = 199  # of the null; the smallest chance is 1 in 200
_OTHERS = 10  # windows from random places for each of the top ones, which these are compared with
_COLOUR_IMAGES = 1000  # whose mean colour stands for all
_CHUNK = 64  # whole images that are looked at together


@dataclass(frozen=True)
class Thresholds:
    """What counts as evidence.

    Args:
        false_alarm_rate: Of each test: chance under the null, at most.
        score: Mean of the top scores, at least.
        agreement: Of the top windows, at least.
    """

    false_alarm_rate: float
    score: float
    agreement: float


@dataclass(frozen=True)
class Evidence:
    """Two questions: do the best windows flip images, and are they windows of the same thing?

    Args:
        score: Mean score of the top windows.
        score_null: (199,) mean top scores of windows from random places.
        agreement: How many times nearer the top windows are to each other than to windows from random places, see
            `sanitize.functional.agreement`.
        agreement_null: (199,) the same of windows from random places.
        thresholds: What counts.
    """

    score: float
    score_null: Tensor
    agreement: float
    agreement_null: Tensor
    thresholds: Thresholds

    @property
    def flips(self) -> bool:
        """Whether the top windows flip more images than those from random places, and enough."""
        return self._rare(self.score, self.score_null) and self.score >= self.thresholds.score

    @property
    def agrees(self) -> bool:
        """Whether the top windows look more alike than those from random places, and enough."""
        return self._rare(self.agreement, self.agreement_null) and self.agreement >= self.thresholds.agreement

    @property
    def convincing(self) -> bool:
        """Both: the network reacts to a patch, and these images carry it."""
        return self.flips and self.agrees

    @property
    def numbers(self) -> dict[str, float]:
        """For the report."""
        return {
            "top_score": self.score,
            "top_score_chance": chance(self.score, self.score_null),
            "agreement": self.agreement,
            "agreement_chance": chance(self.agreement, self.agreement_null),
            "calibrated_false_alarm_rate": self.thresholds.false_alarm_rate,
        }

    @property
    def reason(self) -> str:
        """What it rests on, in a sentence."""
        told = (
            f"the best windows flip {self.score:.0%} of the images that they are pasted on (those from random places "
            f"{float(self.score_null.mean()):.0%}, chance {chance(self.score, self.score_null):.2g}), and are "
            f"{self.agreement:.1f} times as near to each other as to windows from random places (these "
            f"{float(self.agreement_null.mean()):.1f}, chance {chance(self.agreement, self.agreement_null):.2g}); "
            f"calibrated for a false-alarm rate of {self.thresholds.false_alarm_rate:.1%}"
        )
        return told if self.convincing else f"{told}: no evidence of poison"

    @property
    def doubt(self) -> str | None:
        """Why nothing found is no answer yet: the network reacts to patches that these images do not share."""
        if not self.flips or self.agrees:
            return None
        return (
            "single windows steer this network, as in one with a backdoor, but they do not look alike, so that these "
            "images are not shown to carry a trigger; examine the network (`sanitize scan`), and the data with another"
        )

    def _rare(self, value: float, null: Tensor) -> bool:
        return chance(value, null) <= self.thresholds.false_alarm_rate


def chance(value: float, null: Tensor) -> float:
    """Share of null draws, the value counted in, that are at least as high (Monte Carlo test).

    Example:
        >>> chance(2.0, torch.tensor([0.0, 1.0, 3.0]))
        0.5
    """
    return (1 + int((null >= value).sum())) / (1 + len(null))


def weigh(
    images: Tensor,
    values: Tensor,
    null: Tensor,
    top: Tensor,
    corners: Tensor,
    clusters: Tensor,
    window: int,
    *,
    thresholds: Thresholds,
    generator: torch.Generator,
) -> Evidence:
    """Compare the best windows with windows from random places.

    Args:
        images: (N, 3, H, W) uint8 on the CPU.
        values: (N,) scores; 0 where an image was not scored.
        null: (M,) scores of windows from random places, by the same test.
        top: (k,) rows of the best windows.
        corners: (N, 2) places of the windows.
        clusters: (N,) int64.
        window: Side in pixels.
        thresholds: What counts as evidence.
        generator: Of draws and places.
    """
    scored = int((corners[:, 0] >= 0).sum())
    count = len(top)
    colour = _mean_colour(images[:_COLOUR_IMAGES])
    rows = torch.randint(len(images), (2 * _OTHERS * count,), generator=generator)
    places = torch.randint(images.shape[-1] - window + 1, (len(rows), 2), generator=generator)
    elsewhere = windows_of(images, rows, places, window)

    all_alike = likeness(elsewhere, elsewhere, colour)

    def best_of_null() -> Tensor:
        return null[torch.randint(len(null), (scored,), generator=generator)].topk(count).values.mean()

    def agreement_elsewhere() -> float:
        drawn = torch.randperm(len(elsewhere), generator=generator)
        alike = all_alike[drawn[:count]]
        return nearness(alike[:, drawn[:count]], alike[:, drawn[count : (_OTHERS + 1) * count]])

    return Evidence(
        score=float(values[top].mean()),
        score_null=torch.stack([best_of_null() for _ in range(DRAWS)]),
        agreement=agreement(windows_of(images, top, corners[top], window), elsewhere[: _OTHERS * count], colour),
        agreement_null=torch.tensor([agreement_elsewhere() for _ in range(DRAWS)]),
        thresholds=thresholds,
    )


def windows_of(images: Tensor, rows: Tensor, corners: Tensor, window: int) -> Tensor:
    """Windows (B, 3, w, w) at corners (B, 2) of these rows of the images, few whole images at a time."""
    parts = zip(torch.split(rows, _CHUNK), torch.split(corners, _CHUNK), strict=True)
    return torch.cat([cut(images[part], places, window) for part, places in parts])


def _mean_colour(images: Tensor) -> Tensor:
    total = torch.zeros(3, dtype=torch.float64)
    for part in torch.split(images, _CHUNK):
        total += part.float().mean(dim=(2, 3)).sum(dim=0)
    return (total / len(images)).float()
