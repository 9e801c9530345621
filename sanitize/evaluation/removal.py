"""What became of the canaries of a drill, and what that says about the removal rate: counts and an exact bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy.stats import binomtest

from sanitize.types import Metrics

SURVIVAL_MARGIN = 0.2
"""A canary whose success rate stays so far above its base rate survived the purification."""
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class CanaryOutcome:
    """One canary, planted in a copy of the suspect that was purified afterwards.

    Args:
        family: ``patch``, ``blend`` or ``frequency``.
        trigger: What was put on the images, in words.
        target: Class that it was planted for.
        attempts: How often planting was tried.
        taken: Whether it worked before the purification; if not, nothing was purified and the following are None.
        planted_success_rate: Attack success rate before the purification, at the last attempt.
        success_rate: The same after it.
        base_rate: Share of the same images that the purified copy sends to the target without the trigger.
        clean_accuracy_loss: What the purification cost on untouched held-out images.
        stopped: Why the defence stopped itself or failed on this copy, or None.
    """

    family: str
    trigger: str
    target: int
    attempts: int
    taken: bool = False
    planted_success_rate: float | None = None
    success_rate: float | None = None
    base_rate: float | None = None
    clean_accuracy_loss: float | None = None
    stopped: str | None = None

    @property
    def survived(self) -> bool:
        """Whether it still works; a purification that did not come to its end has removed nothing."""
        if not self.taken:
            return False
        if self.stopped is not None or self.success_rate is None or self.base_rate is None:
            return True
        return self.success_rate - self.base_rate >= SURVIVAL_MARGIN - 1e-9  # 0.3 - 0.1 is below 0.2 in binary

    @property
    def outcome(self) -> str:
        """``not taken``, ``survived`` or ``removed``."""
        if not self.taken:
            return "not taken"
        return "survived" if self.survived else "removed"

    @property
    def rates(self) -> dict[str, float]:
        """What was measured, for the curves of a run."""
        values = {
            "planted_success_rate": self.planted_success_rate,
            "success_rate": self.success_rate,
            "base_rate": self.base_rate,
        }
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class DrillResult:
    """All canaries of a drill; those that did not take are left out of every count but `not_taken`."""

    canaries: Sequence[CanaryOutcome]

    @property
    def planted(self) -> int:
        """Canaries that worked before the purification."""
        return sum(canary.taken for canary in self.canaries)

    @property
    def not_taken(self) -> int:
        """Canaries that could not be planted."""
        return len(self.canaries) - self.planted

    @property
    def survived(self) -> int:
        """Canaries that still work."""
        return sum(canary.survived for canary in self.canaries)

    @property
    def bound(self) -> float | None:
        """Lower bound of the removal rate at 95 %; None where no canary took."""
        return removal_bound(self.planted - self.survived, self.planted) if self.planted else None

    @property
    def families(self) -> list[str]:
        """Families of the canaries that took: what the bound is about."""
        return list(dict.fromkeys(canary.family for canary in self.canaries if canary.taken))

    @property
    def metrics(self) -> Metrics:
        """As the report names them; docs/metrics.md explains each."""
        losses = [canary.clean_accuracy_loss for canary in self.canaries if canary.clean_accuracy_loss is not None]
        return {
            "drill/planted": float(self.planted),
            "drill/not_taken": float(self.not_taken),
            "drill/survived": float(self.survived),
            "drill/removal_rate": (self.planted - self.survived) / self.planted if self.planted else None,
            "drill/removal_bound": self.bound,
            "drill/clean_accuracy_loss": sum(losses) / len(losses) if losses else None,
        }

    @property
    def unmeasured(self) -> dict[str, str]:
        """Why a metric is None."""
        reason = "no canary of the drill took" if not self.planted else "the defence finished on no copy"
        return {name: reason for name, value in self.metrics.items() if value is None}

    @property
    def statement(self) -> str:
        """The result in words, with what it is stated for."""
        if self.bound is None:
            return f"drill: none of {len(self.canaries)} canaries took, so that it shows nothing"
        left_out = f" ({self.not_taken} more did not take and are not counted)" if self.not_taken else ""
        return (
            f"drill: {self.planted - self.survived} of {self.planted} canaries removed{left_out}; the removal rate is "
            f"at least {self.bound:.1%} at {CONFIDENCE:.0%} confidence, for the canary families drilled "
            f"({', '.join(self.families)}) and no others"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON form, for the report."""
        return {
            "statement": self.statement,
            "families": self.families,
            "survival_margin": SURVIVAL_MARGIN,
            "confidence": CONFIDENCE,
            "canaries": [asdict(canary) | {"outcome": canary.outcome} for canary in self.canaries],
        }


def removal_bound(removed: int, planted: int) -> float:
    """Exact one-sided lower bound (Clopper, Pearson 1934) of the removal rate at 95 % confidence.

    Args:
        removed: Canaries that are gone, 0 to `planted`.
        planted: Canaries that took, at least 1.

    Example:
        >>> round(removal_bound(20, 20), 2)
        0.86
    """
    return float(binomtest(removed, planted, alternative="greater").proportion_ci(CONFIDENCE, method="exact").low)


def canaries_needed(bound: float) -> int:
    """How many canaries it takes to show a removal rate of at least `bound`, in (0, 1), when none survives.

    Example:
        >>> canaries_needed(0.86), canaries_needed(0.95)
        (20, 59)
    """
    count = 1
    while removal_bound(count, count) < bound:
        count += 1
    return count
