"""What every trigger is: an object with `apply(images)`, a target, a digest, and a SPEC file that brings it back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sanitize.errors import ConfigError

Target = int | Literal["next"] | None
"""Class that the attacker wants; ``next``: each image's own class plus one (all-to-all); None where it is not known."""


class Trigger(ABC):
    """A change of the image that only the attacker knows.

    To add a kind: one file with a subclass, one line in `sanitize.data.triggers.specs`.

    Attributes:
        name: For reports.
        target: The class that the attacker wants.
    """

    name: str
    target: Target

    @abstractmethod
    def apply(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Put the trigger on every image.

        Args:
            images: (N, 3, H, W), RGB in [0, 1]; not changed.
            generator: Of what is random; None means a fresh one with seed 0, so that a call repeats itself.

        Returns:
            (N, 3, H, W) in [0, 1], on the device and of the type of `images`; differentiable in `images`.

        Raises:
            ConfigError: The trigger does not fit on images of this size.
        """

    @property
    @abstractmethod
    def sha256(self) -> str:
        """Digest of what the trigger does, and of the target; the name does not count."""

    @abstractmethod
    def save(self, folder: Path) -> Path:
        """Write ``trigger.yaml`` and the files that it names; the path of ``trigger.yaml``, which is written last."""

    @staticmethod
    def from_yaml(path: Path) -> Trigger:
        """Read a trigger SPEC of any kind; files that it names are relative to it.

        Raises:
            ConfigError: The file or a key of it is wrong.
        """
        from sanitize.data.triggers import specs

        return Trigger.from_dict(specs.read_yaml(path), path.parent)

    @staticmethod
    def from_dict(values: Mapping[str, Any], folder: Path = Path()) -> Trigger:
        """Read the values of a trigger SPEC.

        Args:
            values: ``kind`` (``patch`` where it is left out) and the keys of that kind.
            folder: What files named in it are relative to.

        Raises:
            ConfigError: A key is unknown, missing or has an unfit value.
        """
        from sanitize.data.triggers import specs

        return specs.make(values, folder)


def check_target(target: object, name: str) -> None:
    """Refuse what is no target.

    Raises:
        ConfigError: Neither a class index, nor ``next``, nor None.
    """
    if target is None or target == "next":
        return
    if isinstance(target, bool) or not isinstance(target, int) or target < 0:
        raise ConfigError(f"{name}: target must be a class index, 0 or more, or next, got {target!r}.")


def check_pixels(images: Tensor, name: str) -> None:
    """Refuse images that are not floats.

    Raises:
        ConfigError: They are uint8, most likely.
    """
    if not images.is_floating_point():
        raise ConfigError(f"{name} is pasted on images in [0, 1], got {images.dtype}. Divide uint8 by 255.")
