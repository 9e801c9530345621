"""Distillation: teach a fresh encoder what the suspect says about clean images, and nothing else."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from sanitize.data import DeviceImages, ImageSet, SSLViews
from sanitize.defenses.base import Need, Paper, Purified, Purifier
from sanitize.functional.distillation import similarity_divergence
from sanitize.functional.similarity import centred_similarity
from sanitize.suspects import untrained
from sanitize.suspects.networks import Network
from sanitize.training import Engine
from sanitize.types import ModelKind


class Distill(Purifier):
    """Distillation of an encoder into a fresh one of the same architecture, on clean images without labels.

    The student learns to place each view among the anchors as the suspect does: both turn their cosine similarities to
    the suspect's features of all given images into a distribution, and the student's is pulled onto the suspect's
    (CompRess with one queue, Koohpayegani et al., NeurIPS 2020, eq. 1 and 2). The trigger does not occur in the clean
    images, so it is not handed on; what the images do not show is lost, too.

    Differs from the paper:
        - The anchors are the suspect's features of the given images, computed once; CompRess keeps a queue of 128,000
          features, which a few thousand images do not fill.
        - Student and teacher see the same view.

    Example:
        >>> Distill(temperature=0.1).temperature
        0.1
    """

    name: ClassVar[str] = "distill"
    summary: ClassVar[str] = "a fresh encoder learns the suspect's similarities on clean images; costs accuracy"
    paper: ClassVar[Paper] = Paper(
        "Backdoor Attacks on Self-Supervised Learning",
        "Saha, Tejankar, Koohpayegani, Pirsiavash; CVPR 2022 (section 5)",
        "https://arxiv.org/abs/2105.10123",
    )
    kinds: ClassVar[frozenset[ModelKind]] = frozenset({"encoder"})
    needs: ClassVar[frozenset[Need]] = frozenset({Need.MODEL, Need.IMAGES, Need.CLEAN_IMAGES})
    minimum_images: ClassVar[int] = 64

    epochs: int = Field(
        130, ge=1, description="passes over the images", json_schema_extra={"paper": "130 of ImageNet-100"}
    )
    batch_size: int = Field(64, ge=2, description="images a step", json_schema_extra={"paper": 256})
    learning_rate: float = Field(0.05, gt=0, description="of SGD, at the start", json_schema_extra={"paper": 0.01})
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(1e-4, ge=0, description="of SGD")
    temperature: float = Field(0.04, gt=0, description="of the similarities, teacher and student")
    min_scale: float = Field(0.2, gt=0, le=1, description="smallest share of an image that a view shows")
    jitter: float = Field(0.4, ge=0, le=1, description="strength of the views' colour changes")
    grey: float = Field(0.2, ge=0, le=1, description="probability of a grey view")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a mirrored view; 0 where left and right differ")

    def purify(self, network: Network, data: ImageSet, engine: Engine) -> Purified:
        """One stage; see the class."""
        images = DeviceImages(data, engine.device)
        suspect_features = engine.forward(network, images.pixels, len(images))
        anchors = normalize(suspect_features).to(engine.device)
        views = SSLViews(data.image_size, min_scale=self.min_scale, jitter=self.jitter, grey=self.grey, flip=self.flip)
        # Not the run's seed itself: a suspect that was initialised with it would be its own student.
        seed = int(torch.randint(2**31, (1,), generator=engine.generator("distill/student")))
        student = untrained(
            network.spec.architecture,
            kind="encoder",
            image_size=network.spec.image_size,
            normalization=network.spec.normalization.name,
            seed=seed,
        )

        def loss(module: nn.Module, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            pixels = views(images.pixels(indices), generator)
            with torch.no_grad(), engine.fabric.autocast():
                wanted = network(pixels)
            return {"loss": similarity_divergence(wanted, module(pixels), anchors, temperature=self.temperature)}

        def kept() -> float:
            features = engine.forward(student, images.pixels, len(images))
            return float(centred_similarity(suspect_features, features).mean())

        before = kept()
        history = engine.fit(
            self.name,
            student,
            loss,
            images=len(images),
            batch_size=self.batch_size,
            epochs=self.epochs,
            drop_last=True,
            optimizer=lambda parameters: SGD(
                parameters, lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
            ),
            scheduler=lambda optimizer, steps: CosineAnnealingLR(optimizer, T_max=steps),
        )
        return Purified(student, {"student_similarity": before}, {"student_similarity": kept()}, {self.name: history})
