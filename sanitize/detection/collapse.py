"""Feature collapse: how small a universal change makes a network's outputs for different images alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from sanitize.data import DeviceImages, ImageSet
from sanitize.detection.model import Alarm, Evidence, ModelDetector
from sanitize.functional.collapse import FAMILIES, fresh_search
from sanitize.method import Paper
from sanitize.suspects.networks import Network
from sanitize.training import Engine
from sanitize.types import ModelKind


class FeatureCollapse(ModelDetector):
    """What fresh searches for a collapse reach: the trigger-free measure of UAU, for encoders and classifiers.

    Two searches, as UAU's: a perturbation of at most 0.05 a pixel, whose collapse is the measure, and a masked pattern,
    whose size is. Clean networks collapse, too: the numbers speak only beside those of clean networks of the same
    architecture, for the same images and seed.

    Example:
        >>> FeatureCollapse(steps=20).steps
        20
    """

    name: ClassVar[str] = "feature-collapse"
    summary: ClassVar[str] = "how small a universal change makes outputs of different images alike; no labels"
    paper: ClassVar[Paper] = Paper(
        "own measure; the masked pattern is close to DECREE's",
        "after Feng, Tao, Cheng, Shen, Xu, Liu, Zhang, Ma, Zhang; CVPR 2023",
        "https://arxiv.org/abs/2303.15180",
    )
    kinds: ClassVar[frozenset[ModelKind]] = frozenset({"encoder", "classifier"})
    minimum_images: ClassVar[int] = 64
    alarming: ClassVar[Mapping[str, Alarm]] = {"collapse_perturbation": "high", "pattern_size": "low"}

    steps: int = Field(40, ge=1, description="steps of Adam a search; each search starts twice")
    batch_size: int = Field(64, ge=2, description="images a step")

    def examine(self, network: Network, data: ImageSet, engine: Engine) -> Evidence:
        """Search; see the class.

        Returns:
            ``collapse_perturbation`` and ``collapse_pattern`` in [-1, 1], ``pattern_size`` in [0, 1], and pictures of
            what was found.
        """
        self.require(network, data)
        images = DeviceImages(data, engine.device)
        centre = engine.forward(network, images.pixels, len(images)).mean(dim=0).to(engine.device)
        evidence = Evidence({})
        for family in FAMILIES:
            with engine.fabric.autocast():
                found = fresh_search(
                    network,
                    images.pixels,
                    len(images),
                    family,
                    data.image_size,
                    centre,
                    engine.generator(f"feature-collapse/{family}"),
                    steps=self.steps,
                    batch_size=self.batch_size,
                )
            evidence.metrics[f"collapse_{family}"] = found.collapse
            evidence.pictures |= {name: picture.cpu() for name, picture in found.change.pictures().items()}
            if family == "pattern":
                evidence.metrics["pattern_size"] = found.penalty
        return evidence
