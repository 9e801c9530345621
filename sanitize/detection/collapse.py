"""Feature collapse: how small a universal change makes a network's outputs for different images alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from sanitize.data import DeviceImages, ImageSet
from sanitize.detection.model import Alarm, Evidence, ModelDetector
from sanitize.functional.changes import FAMILIES
from sanitize.functional.collapse import fresh_search
from sanitize.method import Paper
from sanitize.suspects.networks import Network
from sanitize.training import Engine
from sanitize.types import ModelKind


class FeatureCollapse(ModelDetector):
    """What fresh searches for a collapse reach: the trigger-free measure of UAU, for encoders and classifiers.

    Two searches, as UAU's: a perturbation of at most 0.05 a pixel, and a patch with an eighth of the image's side, at
    any place. Clean networks collapse, too, though less: the numbers speak only beside those of clean networks of the
    same architecture, for the same images and seed.

    Example:
        >>> FeatureCollapse(steps=6).steps
        6
    """

    name: ClassVar[str] = "feature-collapse"
    summary: ClassVar[str] = "how small a universal change makes outputs of different images alike; no labels"
    paper: ClassVar[Paper] = Paper(
        "own measure, close to that of DECREE",
        "after Feng, Tao, Cheng, Shen, Xu, Liu, Zhang, Ma, Zhang; CVPR 2023",
        "https://arxiv.org/abs/2303.15180",
    )
    kinds: ClassVar[frozenset[ModelKind]] = frozenset({"encoder", "classifier"})
    minimum_images: ClassVar[int] = 64
    alarming: ClassVar[Mapping[str, Alarm]] = {"collapse_perturbation": "high", "collapse_patch": "high"}

    starts: int = Field(8, ge=1, description="perturbations that the search begins with; patches tile the image")
    steps: int = Field(12, ge=1, description="steps of Adam in each of the three parts of a search")
    batch_size: int = Field(64, ge=2, description="images of the last measurement; memory grows with it")

    def examine(self, network: Network, data: ImageSet, engine: Engine) -> Evidence:
        """Search; see the class.

        Returns:
            ``collapse_perturbation`` and ``collapse_patch`` in [-1, 1], and pictures of what was found.
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
                    starts=self.starts,
                    steps=self.steps,
                    batch_size=self.batch_size,
                )
            evidence.metrics[f"collapse_{family}"] = found.collapse
            evidence.pictures[family] = found.changes.picture().cpu()
        return evidence
