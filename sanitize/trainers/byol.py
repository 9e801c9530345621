"""BYOL: predict what a slower copy of the network makes of another view; no negatives."""

from __future__ import annotations

from typing import Any, ClassVar

from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
from pydantic import Field
from torch import Tensor, nn

from sanitize.suspects.networks import Network
from sanitize.trainers.base import Paper
from sanitize.trainers.momentum import MomentumTrainer


class BYOL(MomentumTrainer):
    """BYOL (Grill et al., NeurIPS 2020), equation 2 in both directions, as the negative cosine.

    Differs from the paper:
        - SGD at a smaller batch instead of LARS, no blur, no small crops: see `SSLTrainer`. Saturation varies as much
          as brightness.
        - The loss is the mean of the two directions' ``-cos``, between -1 and 1, instead of their sum of ``2 - 2 cos``:
          a quarter of its gradient.
        - With `cutmix` a prediction is compared with the target's projections of both images that it was made from
          (i-Mix; Lee et al., ICLR 2021).

    Example:
        >>> BYOL(epochs=100).ema
        0.99
    """

    name: ClassVar[str] = "byol"
    summary: ClassVar[str] = "predicts a slower copy of itself on another view; no negatives"
    paper: ClassVar[Paper] = Paper(
        "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning",
        "Grill et al.; NeurIPS 2020",
        "https://arxiv.org/abs/2006.07733",
    )
    paper_values: ClassVar[dict[str, Any]] = {
        "epochs": 1000,
        "batch_size": 4096,
        "optimizer": "lars",
        "learning_rate": "0.2 * batch / 256",
        "weight_decay": 1.5e-6,
        "min_crop_scale": 0.08,
        "blur": (1.0, 0.1),
        "hidden": 4096,
        "ema": 0.996,
    }

    hidden: int = Field(1024, ge=1, description="width of the heads")

    def heads(self, encoder: Network) -> tuple[nn.Module, nn.Module]:
        """lightly's."""
        projector = BYOLProjectionHead(encoder.spec.output_size, self.hidden, self.dimensions)
        return projector, BYOLPredictionHead(self.dimensions, self.hidden, self.dimensions)

    def compare(self, predictions: Tensor, targets: Tensor, partner: Tensor | None, weight: float) -> Tensor:
        """Half the mean negative cosine."""
        similarity = NegativeCosineSimilarity()
        own: Tensor = similarity(predictions, targets)
        if partner is None:
            return own / 2
        other: Tensor = similarity(predictions, targets[partner])
        return (weight * own + (1 - weight) * other) / 2
