"""What every defence is: validated parameters in the constructor, model and data in the call.

To add a defence: one file with a subclass of `Purifier`, one line in `sanitize.defenses`, one row in
tests/defenses/test_table.py, one recipe, one page in docs/methods.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

from torch import Tensor

from sanitize.data.images import ImageSet
from sanitize.errors import ConfigError, DataError
from sanitize.method import Method, Paper
from sanitize.suspects.networks import Network
from sanitize.training import Engine, History
from sanitize.types import Finding, ModelKind


class Need(StrEnum):
    """What a defence must be given; checked before any work."""

    MODEL = "model"
    IMAGES = "images"
    LABELS = "labels"
    CLEAN_IMAGES = "clean images"


@dataclass
class Purified:
    """What a purification gives back.

    Args:
        network: The cleaned network, in eval mode.
        before: Trigger-free measures before the removal (see docs/metrics.md).
        after: The same measures after it.
        history: One entry a stage.
        pictures: Name -> image (3, H, W) in [0, 1] that shows what was planted or found.
        findings: Observations about the suspect.
        destroyed: Why the guard stopped the work, or None.
    """

    network: Network
    before: dict[str, float | None]
    after: dict[str, float | None]
    history: dict[str, History]
    pictures: dict[str, Tensor] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    destroyed: str | None = None


class Defense(Method):
    """Base of all defences; see `Method` for how parameters are declared."""

    kinds: ClassVar[frozenset[ModelKind]]
    needs: ClassVar[frozenset[Need]]
    minimum_images: ClassVar[int] = 1
    takes_suspected: ClassVar[bool] = False
    """Whether a guess of which images are poisoned (`ImageSet.suspected`) is used."""

    def check(self, kind: ModelKind, data: ImageSet | None) -> ImageSet | None:
        """Whether the needs are met.

        Returns:
            The data; None only where none were given and the method needs no images.

        Raises:
            ConfigError: The method is not for this kind of model, or has no use for a guess that was given.
            DataError: Images or labels are missing, or too few.
        """
        if kind not in self.kinds:
            raise ConfigError(f"{self.name} works on {' and '.join(sorted(self.kinds))}s, and this is a {kind}.")
        if data is None:
            if Need.IMAGES not in self.needs:
                return None
            raise DataError(
                f"{self.name} needs {', '.join(sorted(self.needs - {Need.MODEL}))}. "
                "Give --data, or bind data to the registered model with `sanitize bind`."
            )
        if data.suspected is not None and not self.takes_suspected:
            raise ConfigError(f"{self.name} has no use for suspected images; leave out --suspected, or use d-br.")
        if Need.LABELS in self.needs:
            data.require_labels(self.name)
        if len(data) < self.minimum_images:
            raise DataError(f"{self.name} needs at least {self.minimum_images} images; {data.uri} has {len(data)}.")
        return data


class Purifier(Defense):
    """A defence that gives back a cleaned network."""

    @abstractmethod
    def purify(self, network: Network, data: Any, engine: Engine) -> Purified:
        """Clean a network.

        Args:
            network: The suspect; left unchanged.
            data: `ImageSet` of clean images (with labels, if the method needs them); None is possible only for a method
                that needs no images.
            engine: Device, seed, checkpoints, recorder.
        """


__all__ = ["Defense", "Need", "Paper", "Purified", "Purifier"]
