"""DECREE: how small can a trigger be that makes all features of an encoder alike?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from sanitize.data import DeviceImages, ImageSet
from sanitize.detection.inversion import invert
from sanitize.detection.model import Alarm, Evidence, ModelDetector
from sanitize.functional.inversion import Controller, off_diagonal_similarity
from sanitize.method import Paper
from sanitize.suspects.networks import Network
from sanitize.training import Engine
from sanitize.types import ModelKind


class DECREE(ModelDetector):
    """The PL1 norm of an inverted trigger, for encoders, without labels and without targets.

    A mask m and a pattern p are sought that make the features of all images alike, while the mask is small:
    ``min -C + lambda |m|``, with C the mean cosine similarity of different images (Feng et al. 2023, section 4). The
    PL1 norm is the sum of the smallest mask that reached C, divided by the number of the image's values: the share of
    the image that it covers. A backdoored encoder allows a smaller one than a clean encoder.

    Some mask always works (one that covers the whole image), so that a number alone says nothing: compare with the
    numbers of clean encoders of the same architecture and data.

    Differs from the paper:
        - Several starting points at once; the norm is given with its range.
        - A fixed number of steps, without early stopping, and the learning rate falls at fixed shares of them.
        - `centred` takes the mean of clean features away first: behind a ReLU all features point the same way.

    Example:
        >>> DECREE(steps=100).steps
        100
    """

    name: ClassVar[str] = "decree"
    summary: ClassVar[str] = "size of the smallest trigger that makes all features alike (PL1 norm); for encoders"
    paper: ClassVar[Paper] = Paper(
        "Detecting Backdoors in Pre-trained Encoders",
        "Feng, Tao, Cheng, Shen, Xu, Liu, Zhang, Ma, Zhang; CVPR 2023",
        "https://arxiv.org/abs/2303.15180",
    )
    kinds: ClassVar[frozenset[ModelKind]] = frozenset({"encoder"})
    minimum_images: ClassVar[int] = 32
    alarming: ClassVar[Mapping[str, Alarm]] = {"pl1_norm": "low"}

    steps: int = Field(1000, ge=4, description="of Adam", json_schema_extra={"paper": "up to 1000 passes"})
    batch_size: int = Field(128, ge=2, description="images a step; as many for each repeat go through the network")
    learning_rate: float = Field(0.5, gt=0, description="of Adam, at the start; a fifth after 15 %, a tenth after 25 %")
    similarity: float = Field(0.99, gt=0, le=1, description="C at which a trigger works")
    penalty: float = Field(1e-3, gt=0, description="lambda: first weight of the mask's sum over three channels")
    patience: int = Field(6, ge=1, description="steps of success or failure before lambda changes by a factor of 5")
    repeats: int = Field(3, ge=1, description="starting points of the inversion", json_schema_extra={"paper": 1})
    centred: bool = Field(False, description="take the mean clean feature away before similarities")

    def examine(self, network: Network, data: ImageSet, engine: Engine) -> Evidence:
        """Invert; see the class.

        Returns:
            ``pl1_norm`` (median over the repeats that found a trigger) with ``_low`` and ``_high``, each in (0, 1], and
            ``clean_self_similarity``, C without any trigger.
        """
        self.require(network, data)
        images = DeviceImages(data, engine.device)
        clean = engine.forward(network, images.pixels, len(images))
        centre = clean.mean(dim=0).to(engine.device) * self.centred

        def objective(features: Tensor, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            alike = off_diagonal_similarity(features - centre)
            return -alike, alike

        weight = self.penalty * 3 * network.spec.image_size**2  # of the mean of the mask, not its sum
        found = invert(
            "decree",
            network,
            images,
            objective,
            targets=self.repeats,
            controller=Controller(start=weight, first=weight, up=5.0, down=5.0, patience=self.patience),
            threshold=self.similarity,
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            engine=engine,
            scheduler=lambda optimizer, steps: LambdaLR(optimizer, lambda step: _factor(step / steps)),
        )
        sizes = found.sizes[~found.sizes.isnan()]
        names = ("pl1_norm", "pl1_norm_low", "pl1_norm_high")
        metrics: dict[str, float | None] = {
            "clean_self_similarity": float(off_diagonal_similarity((clean - centre.cpu())[None]))
        }
        if not len(sizes):
            reason = f"no trigger made the features alike (C of {self.similarity:g} or more) in {self.steps} steps"
            return Evidence(metrics | dict.fromkeys(names), dict.fromkeys(names, reason))
        values = (sizes.quantile(0.5), sizes.min(), sizes.max())
        smallest = int(found.sizes.nan_to_num(nan=torch.inf).argmin())
        return Evidence(
            metrics | {name: float(value) for name, value in zip(names, values, strict=True)},
            pictures={"inverted-trigger": found.picture(smallest)},
        )


def _factor(progress: float) -> float:
    return 1.0 if progress < 0.15 else 0.2 if progress < 0.25 else 0.1
