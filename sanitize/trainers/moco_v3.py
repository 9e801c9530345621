"""MoCo v3: contrast with what a slower copy of the network makes of another view; also for vision transformers."""

from __future__ import annotations

from typing import Any, ClassVar

from lightly.models.modules.heads import ProjectionHead
from lightly.models.utils import activate_requires_grad, deactivate_requires_grad
from pydantic import Field
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from sanitize.data import ImageSet
from sanitize.functional.contrast import contrast
from sanitize.suspects.networks import Network
from sanitize.trainers.base import Paper, Trained
from sanitize.trainers.momentum import MomentumTrainer
from sanitize.training import Engine


class MoCoV3(MomentumTrainer):
    """MoCo v3 (Chen, Xie, He; ICCV 2021, algorithm 1): symmetric InfoNCE against all keys of the batch, no queue.

    The projector has two layers, with a vision transformer three; the transformer's patch embedding keeps its random
    weights (section 4.3). With `cutmix` the queries are mixed and the keys are not, as in PatchSearch's training.

    Differs from the paper:
        - SGD at a smaller batch instead of LARS, no blur: see `SSLTrainer`. A vision transformer wants AdamW and its
          rates, see docs/training.md. Saturation varies as much as brightness.
        - torchvision's vision transformer learns its position embedding; the paper's is fixed.

    Example:
        >>> MoCoV3(optimizer="adamw", learning_rate=3e-4, weight_decay=0.1, warmup_epochs=40).temperature
        0.2
    """

    name: ClassVar[str] = "moco-v3"
    summary: ClassVar[str] = "contrastive, against a slower copy of itself; also for vision transformers"
    paper: ClassVar[Paper] = Paper(
        "An Empirical Study of Training Self-Supervised Vision Transformers",
        "Chen, Xie, He; ICCV 2021",
        "https://arxiv.org/abs/2104.02057",
    )
    paper_values: ClassVar[dict[str, Any]] = {
        "epochs": 300,
        "batch_size": 4096,
        "optimizer": "lars",
        "learning_rate": "0.3 * batch / 256",
        "weight_decay": 1e-6,
        "blur": (1.0, 0.1),
    }

    temperature: float = Field(0.2, gt=0, description="of the softmax over cosines")

    def train(
        self, network: Network, data: ImageSet, engine: Engine, *, monitor: tuple[ImageSet, ImageSet] | None = None
    ) -> Trained:
        """See `SSLTrainer.train`; a transformer's patch embedding is left as it is."""
        if not isinstance(network.backbone, VisionTransformer):
            return super().train(network, data, engine, monitor=monitor)
        deactivate_requires_grad(network.backbone.conv_proj)
        try:
            return super().train(network, data, engine, monitor=monitor)
        finally:
            activate_requires_grad(network.backbone.conv_proj)

    def heads(self, encoder: Network) -> tuple[nn.Module, nn.Module]:
        """Projector of two or three layers, predictor of two."""
        depth = 3 if isinstance(encoder.backbone, VisionTransformer) else 2
        projector = _head(encoder.spec.output_size, self.hidden, self.dimensions, depth)
        return projector, _head(self.dimensions, self.hidden, self.dimensions, 2)

    def compare(self, predictions: Tensor, targets: Tensor, partner: Tensor | None, weight: float) -> Tensor:
        """InfoNCE times twice the temperature."""
        term = contrast(predictions, targets, temperature=self.temperature, partner=partner, weight=weight)
        return 2 * self.temperature * term


def _head(size: int, hidden: int, dimensions: int, depth: int) -> nn.Module:
    """Linear layers with batch norm after each, the last without scale and shift."""
    sizes = [size, *[hidden] * (depth - 1)]
    blocks = [(before, hidden, nn.BatchNorm1d(hidden), nn.ReLU()) for before in sizes[:-1]]
    head: nn.Module = ProjectionHead([*blocks, (hidden, dimensions, nn.BatchNorm1d(dimensions, affine=False), None)])
    return head
