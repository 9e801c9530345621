"""What BYOL and MoCo v3 share: an online network, a target that follows it slowly, and a loss in both directions."""

from __future__ import annotations

import copy
from abc import abstractmethod

import torch
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.utils.scheduler import cosine_schedule
from pydantic import Field
from torch import Tensor, nn

from sanitize.data.views import cutmix
from sanitize.suspects.networks import Network
from sanitize.trainers.ssl import Learner, Share, SSLTrainer


class MomentumLearner(Learner):
    """Encoder, projector and predictor, and a moving average of the first two, which gets no gradient.

    The average moves at the start of each step, ``target = m * target + (1 - m) * online``; m rises by a cosine from
    its first value to 1 at the last step (BYOL, section 3.2). It is part of the module, so that checkpoints hold it.
    Batch norm of the target works with its own batch.

    Args:
        encoder: What is trained.
        projector: Features (N, D) to projections (N, P).
        predictor: Projections to predictions (N, P).
        momentum: m at the first step, in [0, 1].
        steps: Length of the training.
    """

    def __init__(
        self, encoder: Network, projector: nn.Module, predictor: nn.Module, *, momentum: float, steps: int
    ) -> None:
        super().__init__(encoder)
        self.projector = projector
        self.predictor = predictor
        self.target = nn.Sequential(copy.deepcopy(encoder), copy.deepcopy(projector))
        deactivate_requires_grad(self.target)
        self._first_momentum = momentum
        self._last_step = steps

    @property
    def momentum(self) -> float:
        """m of the step that comes."""
        momentum: float = cosine_schedule(self.steps, self._last_step, self._first_momentum, 1.0)
        return momentum

    def follow(self) -> None:
        """Move the target."""
        update_momentum(self.encoder, self.target[0], self.momentum)
        update_momentum(self.projector, self.target[1], self.momentum)

    def forward(self, seen: tuple[Tensor, Tensor], kept: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Predictions of two views, and what they are to predict.

        Args:
            seen: Two views (N, 3, H, W), mixed or not: for the online network.
            kept: The same views, not mixed: for the target.

        Returns:
            Predictions of the first and second view, target's projections of the first and second view, (N, P) each.
        """
        if self.training:
            self.follow()
        predictions = [self.predictor(self.projector(self.encoder(view))) for view in seen]
        with torch.no_grad():
            targets = [self.target(view) for view in kept]
        return (*predictions, *targets)


class MomentumTrainer(SSLTrainer):
    """Base of the trainings whose online network predicts a slower copy's projections of the other view.

    With `cutmix` both views are mixed, each in its own way, for the online network alone.
    """

    solarise: tuple[Share, Share] = Field((0.0, 0.2), description="probability of solarisation in the two views")
    hidden: int = Field(4096, ge=1, description="width of the heads")
    dimensions: int = Field(256, ge=1, description="output of the projector and the predictor")
    ema: float = Field(0.99, ge=0, le=1, description="how much of the target stays at the first step; rises to 1")

    @abstractmethod
    def heads(self, encoder: Network) -> tuple[nn.Module, nn.Module]:
        """Projector and predictor."""

    @abstractmethod
    def compare(self, predictions: Tensor, targets: Tensor, partner: Tensor | None, weight: float) -> Tensor:
        """Loss of one direction.

        Args:
            predictions: (N, P) of one view.
            targets: (N, P) of the other.
            partner: (N,) whose image is mixed into each prediction's, or None.
            weight: Share of a prediction's image that is its own.
        """

    def learner(self, encoder: Network, steps: int) -> Learner:
        """Encoder, projector, predictor, and the target."""
        return MomentumLearner(encoder, *self.heads(encoder), momentum=self.ema, steps=steps)

    def loss(self, learner: nn.Module, first: Tensor, second: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Sum of both directions."""
        (one, *one_mix), (other, *other_mix) = (
            cutmix(view, generator) if self.cutmix else (view, None, 1.0) for view in (first, second)
        )
        predicted_one, predicted_other, target_one, target_other = learner((one, other), (first, second))
        forth = self.compare(predicted_one, target_other, *one_mix)
        back = self.compare(predicted_other, target_one, *other_mix)
        return {"loss": forth + back}
