"""What every data-set detector is: one score an image, computed once, and one decision taken from these scores.

To add a detector: one file with a subclass of `DataDetector`, one page in docs/methods.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from sanitize.data.images import ImageSet
from sanitize.errors import DataError
from sanitize.method import Method, Paper
from sanitize.suspects.networks import Network
from sanitize.training import Engine
from sanitize.types import ModelKind


@dataclass(frozen=True)
class Scores:
    """One score an image; row i belongs to row i of the data.

    Args:
        values: (N,) float32 on the CPU; higher is more suspicious.
        labels: (N,) int64 observed labels, or None.
    """

    values: Tensor
    labels: Tensor | None = None

    @property
    def columns(self) -> dict[str, Tensor]:
        """What else is known of each image, (N,) each, beside score, decision and label."""
        return {}


@dataclass(frozen=True)
class Split:
    """Which images are clean, uncertain and poisoned, as far as the scores tell.

    Args:
        clean: (N,) bool.
        poisoned: (N,) bool; no image is both. All False where there is no evidence.
        evidence: Whether the scores themselves show that some images are different.
        reason: What the decision rests on, in a sentence.
        classes: Observed labels among whose images poisoned ones were found; empty where labels play no part.
        numbers: What the decision rests on, by name, for the report.
        calibrated: False-alarm rate that the decision was calibrated for on the data; None where it was not.
        doubt: Why nothing found is no answer yet, or None.
    """

    clean: Tensor
    poisoned: Tensor
    evidence: bool
    reason: str
    classes: tuple[int, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)
    calibrated: float | None = None
    doubt: str | None = None

    @property
    def uncertain(self) -> Tensor:
        """(N,) bool: neither clean nor poisoned."""
        return ~(self.clean | self.poisoned)

    @property
    def counts(self) -> dict[str, int]:
        """How many images are clean, uncertain and poisoned."""
        return {name: int(getattr(self, name).sum()) for name in ("clean", "uncertain", "poisoned")}


class DataDetector(Method):
    """Finds poisoned images of a data set with the help of a network that was trained on such data.

    Attributes:
        kind: Of that network; a classifier asks for labels, and for an encoder labels are dropped.
        minimum_images: Fewer are refused.
    """

    kind: ClassVar[ModelKind]
    minimum_images: ClassVar[int] = 1

    def check(self, data: ImageSet) -> None:
        """Refuse data that the parameters do not fit; before any work.

        Raises:
            DataError: There are too few images, for example.
        """
        if len(data) < self.minimum_images:
            raise DataError(f"{self.name} needs at least {self.minimum_images} images; {data.uri} has {len(data)}.")

    @abstractmethod
    def score(self, network: Network, data: ImageSet, engine: Engine) -> Scores:
        """One score an image.

        Args:
            network: Trained on the untrusted data, or a suspect that was; left unchanged.
            data: The untrusted images.
            engine: Device and seed.
        """

    @abstractmethod
    def split(self, scores: Scores) -> Split:
        """The decision, from the scores alone."""


__all__ = ["DataDetector", "Paper", "Scores", "Split"]
