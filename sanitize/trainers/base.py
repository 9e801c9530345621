"""What every way of training a network from scratch is: parameters in the constructor, network and data in the call.

To add one: a file with a subclass of `Trainer`, a line in `sanitize.trainers`, a row in tests/trainers/test_table.py.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from sanitize.data.images import ImageSet
from sanitize.method import Method, Paper
from sanitize.suspects.networks import Network
from sanitize.training import Engine, History
from sanitize.types import Finding, ModelKind


@dataclass(frozen=True)
class Filtering:
    """Which training images a training trusted, and by what.

    Args:
        losses: (N,) float32 on the CPU, of each image with its observed label; higher is less trusted.
        trusted: (N,) bool: whose labels were used. The others were not thrown away, but their labels were.
    """

    losses: Tensor
    trusted: Tensor


@dataclass
class Trained:
    """What a training gives back.

    Args:
        network: The network that was handed in, trained, in eval mode.
        history: One entry a stage.
        metrics: What was measured on the training data.
        pictures: Name -> image (3, H, W) in [0, 1].
        findings: Observations about the data.
        filterings: Where the training told trusted from other images: moment -> decision, in order of time.
    """

    network: Network
    history: dict[str, History]
    metrics: dict[str, float | None] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    filterings: dict[str, Filtering] = field(default_factory=dict)


class Trainer(Method):
    """Base of all trainings.

    Attributes:
        kind: What comes out.
        needs_labels: Whether labels are used; where not, they are dropped before the training sees the data.
        minimum_images: Fewer are refused.
        filters: Whether it tells trusted images from others (`Trained.filterings`).
        starts_trained: Whether the network's features are trained already; else the network is fresh.
    """

    kind: ClassVar[ModelKind]
    needs_labels: ClassVar[bool]
    minimum_images: ClassVar[int] = 2
    filters: ClassVar[bool] = False

    @property
    def starts_trained(self) -> bool:
        """See the class."""
        return False

    @abstractmethod
    def train(
        self, network: Network, data: ImageSet, engine: Engine, *, monitor: tuple[ImageSet, ImageSet] | None = None
    ) -> Trained:
        """Train a network in place.

        Args:
            network: From `sanitize.suspects.untrained`, or one whose training goes on.
            data: Training images.
            engine: Device, seed, checkpoints, recorder.
            monitor: Labelled images (bank, test) whose accuracy is logged while training; nothing is chosen by it.
        """


__all__ = ["Filtering", "Paper", "Trained", "Trainer"]
