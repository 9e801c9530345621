"""What every detector of backdoored models gives: numbers, what they could not tell, and pictures; no verdict."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from sanitize.data import ImageSet
from sanitize.errors import ConfigError, DataError
from sanitize.method import Method
from sanitize.suspects.networks import Network
from sanitize.training import Engine
from sanitize.types import Finding, Metrics, ModelKind

Alarm = Literal["high", "low"]


@dataclass
class Evidence:
    """What a detector saw in a model, without any trigger of the attacker.

    Args:
        metrics: Name -> value; None where nothing was found or can be said, never 0 in its place.
        unmeasured: Name -> why a metric is None.
        suspected: Targets (classes or clusters) that stand out.
        pictures: Name -> image (3, H, W) in [0, 1].
        findings: For the report.
    """

    metrics: Metrics
    unmeasured: dict[str, str] = field(default_factory=dict)
    suspected: tuple[int, ...] = ()
    pictures: dict[str, Tensor] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


class ModelDetector(Method):
    """Looks for traces of a backdoor in a model; changes nothing."""

    kinds: ClassVar[frozenset[ModelKind]]
    minimum_images: ClassVar[int] = 1
    alarming: ClassVar[Mapping[str, Alarm]] = {}
    """Metrics in [0, 1] that are compared with those of clean networks -> which values speak for a backdoor."""

    def require(self, network: Network, data: ImageSet) -> None:
        """Whether model and images fit.

        Raises:
            ConfigError: The method is not for this kind of model.
            DataError: Too few images.
        """
        if network.spec.kind not in self.kinds:
            raise ConfigError(
                f"{self.name} works on {' and '.join(sorted(self.kinds))}s, and this is a {network.spec.kind}."
            )
        if len(data) < self.minimum_images:
            raise DataError(f"{self.name} needs at least {self.minimum_images} images; {data.uri} has {len(data)}.")

    @abstractmethod
    def examine(self, network: Network, data: ImageSet, engine: Engine) -> Evidence:
        """Look at a model.

        Args:
            network: The suspect; left unchanged.
            data: Clean images.
            engine: Device, seed, checkpoints.
        """


__all__ = ["Alarm", "Evidence", "ModelDetector"]
