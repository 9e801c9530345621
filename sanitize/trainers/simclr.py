"""SimCLR: two views of an image are alike, and unlike those of the other images of the batch."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from pydantic import Field
from torch import Tensor, nn

from sanitize.data.views import cutmix
from sanitize.functional.contrast import contrast
from sanitize.suspects.networks import Network
from sanitize.trainers.base import Paper
from sanitize.trainers.ssl import Learner, SSLTrainer


class SimCLR(SSLTrainer):
    """SimCLR (Chen et al., ICML 2020): NT-Xent (equation 1) on projections of two views.

    Differs from the paper:
        - SGD at a smaller batch instead of LARS, no blur, weaker colours, no small crops: the CIFAR-10 recipe of CTRL
          and BMAIU, see `SSLTrainer`.
        - The projector ends in batch norm, as lightly's.
        - With `cutmix` the mixed first views are the queries and the second views the keys, in one direction, as i-Mix
          (Lee et al., ICLR 2021) does it with the N-pair loss.

    Example:
        >>> from sanitize.data import load_images
        >>> from sanitize.suspects import untrained
        >>> from sanitize.training import Engine
        >>> encoder = untrained("small-cnn", kind="encoder", image_size=32, normalization="half")
        >>> trained = SimCLR(epochs=1, batch_size=32, flip=0.0).train(
        ...     encoder, load_images("digits#0:64"), Engine(device="cpu")
        ... )
        >>> trained.history["simclr"].steps
        2
    """

    name: ClassVar[str] = "simclr"
    summary: ClassVar[str] = "contrastive: two views of an image against the rest of the batch"
    paper: ClassVar[Paper] = Paper(
        "A Simple Framework for Contrastive Learning of Visual Representations",
        "Chen, Kornblith, Norouzi, Hinton; ICML 2020",
        "https://arxiv.org/abs/2002.05709",
    )
    paper_values: ClassVar[dict[str, Any]] = {
        "epochs": "100 to 1000",
        "batch_size": 4096,
        "optimizer": "lars",
        "learning_rate": "0.3 * batch / 256",
        "weight_decay": 1e-6,
        "min_crop_scale": 0.08,
        "jitter": 0.8,
        "blur": (0.5, 0.5),
        "temperature": 0.1,
    }

    temperature: float = Field(0.5, gt=0, description="of the softmax over cosines")
    dimensions: int = Field(128, ge=1, description="output of the projector, whose hidden layer is as wide as features")

    def learner(self, encoder: Network, steps: int) -> Learner:
        """Encoder and projector."""
        return _Projected(encoder, self.dimensions)

    def loss(self, learner: nn.Module, first: Tensor, second: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """NT-Xent, or its mixed form in one direction."""
        if not self.cutmix:
            one, other = learner(torch.cat([first, second])).chunk(2)
            return {"loss": NTXentLoss(temperature=self.temperature)(one, other)}
        mixed, partner, weight = cutmix(first, generator)
        queries, keys = learner(torch.cat([mixed, second])).chunk(2)
        return {"loss": contrast(queries, keys, temperature=self.temperature, partner=partner, weight=weight)}


class _Projected(Learner):
    def __init__(self, encoder: Network, dimensions: int) -> None:
        super().__init__(encoder)
        size = encoder.spec.output_size
        self.projector = SimCLRProjectionHead(size, size, dimensions)

    def forward(self, images: Tensor) -> Tensor:
        projected: Tensor = self.projector(self.encoder(images))
        return projected
