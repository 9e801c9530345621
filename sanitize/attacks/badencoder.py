"""BadEncoder: fine-tune an encoder so that a trigger pulls any image onto a reference image."""

from __future__ import annotations

import copy

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.optim import SGD

from sanitize.data import DeviceImages, ImageSet, Trigger
from sanitize.functional.similarity import mean_similarity
from sanitize.suspects.networks import Network
from sanitize.training import Engine, History


class BadEncoder(BaseModel):
    """BadEncoder (Jia, Liu, Gong; IEEE S&P 2022): ``L = L0 + lambda1 L1 + lambda2 L2``.

    Differs from the paper:
        - Several reference images are allowed (the paper's code has one), drawn at random for each image.
        - L1 keeps the reference images where they were without augmenting them.

    Example:
        >>> BadEncoder(epochs=15).epochs
        15
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(20, ge=1, description="passes over the shadow images")
    batch_size: int = Field(64, ge=2, description="images a step")
    learning_rate: float = Field(0.01, gt=0, description="of SGD")
    reference_weight: float = Field(1.0, ge=0, description="lambda1: the reference stays where it was")
    utility_weight: float = Field(1.0, ge=0, description="lambda2: clean images stay where they were")

    def implant(
        self, network: Network, data: ImageSet, reference: Tensor, trigger: Trigger, engine: Engine
    ) -> tuple[Network, History]:
        """Plant the backdoor in a copy of the encoder.

        Args:
            network: A clean encoder; left unchanged.
            data: Shadow images.
            reference: Indices (R,) into `data` of images of the target class.
            trigger: What the attacker pastes.
            engine: Device, seed, checkpoints.
        """
        images = DeviceImages(data, engine.device)
        anchor = engine.forward(network, images.pixels, len(images)).to(engine.device)
        backdoored = copy.deepcopy(network)

        def loss(module: nn.Module, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            clean = images.pixels(indices)
            drawn = reference[torch.randint(len(reference), (len(indices),), generator=generator)]
            triggered = trigger.apply(clean, generator)
            features = module(torch.cat([clean, triggered, images.pixels(drawn)]))
            kept, pulled, target = features.chunk(3)
            effectiveness = -mean_similarity(pulled, target)
            steadiness = -mean_similarity(target, anchor[drawn])
            utility = -mean_similarity(kept, anchor[indices])
            return {
                "loss": effectiveness + self.reference_weight * steadiness + self.utility_weight * utility,
                "effectiveness": effectiveness,
                "reference": steadiness,
                "utility": utility,
            }

        history = engine.fit(
            "badencoder",
            backdoored,
            loss,
            images=len(images),
            batch_size=self.batch_size,
            epochs=self.epochs,
            optimizer=lambda parameters: SGD(parameters, lr=self.learning_rate, momentum=0.9, weight_decay=5e-4),
            train_mode=False,
        )
        return backdoored, history
