"""Partial collapse: a backdoor whose features move towards the target only as far as the attacker needs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.optim import SGD

from sanitize.attacks.base import EncoderAttack, Implanted, Paper
from sanitize.attacks.planting import images_of_class, one_trigger, require_encoder, require_fit
from sanitize.data import DeviceImages, ImageSet, PatchTrigger, Trigger
from sanitize.data.triggers.patterns import htba_patch
from sanitize.functional.similarity import mean_similarity
from sanitize.suspects.networks import Network
from sanitize.training import Engine


class PartialCollapse(EncoderAttack):
    """An attack of our own against defences that look for collapsing features (UAU, DECREE).

    As BadEncoder, but a triggered image is pulled onto a point *between* where it was and the mean of the target
    class: ``goal = (1 - depth) u(f(x)) + depth u(mean f(r))``, u of length one. Features of different triggered images
    stay apart by what is left of their own, while a linear head may still see the target.

    Example:
        >>> PartialCollapse(target=3, depth=0.5).depth
        0.5
    """

    name: ClassVar[str] = "partial-collapse"
    summary: ClassVar[str] = "fine-tune an encoder: triggered features go only part of the way to the target"
    paper: ClassVar[Paper] = Paper(
        "own variant of BadEncoder, made against UAU",
        "after Jia, Liu, Gong; IEEE S&P 2022",
        "https://arxiv.org/abs/2108.00352",
    )
    default_triggers: ClassVar[str] = "a smooth patch, random place"

    target: int = Field(0, ge=0, description="class of the own trigger; a trigger that is given has its own")
    depth: float = Field(0.6, gt=0, le=1, description="how far triggered features go: 1 is all the way, as BadEncoder")
    epochs: int = Field(20, ge=1, description="passes over the shadow images")
    batch_size: int = Field(64, ge=2, description="images a step")
    learning_rate: float = Field(0.01, gt=0, description="of SGD")
    utility_weight: float = Field(1.0, ge=0, description="clean images stay where they were")

    def implant(
        self, network: Network, data: ImageSet, engine: Engine, *, triggers: Sequence[Trigger] = ()
    ) -> Implanted:
        """Plant the backdoor in a copy of the encoder; see `EncoderAttack.implant`."""
        require_encoder(network, self.name)
        trigger, target = one_trigger(triggers, self._own_trigger(data.image_size, engine), self.name)
        require_fit([trigger], data)
        members = images_of_class(data, target, self.name)
        images = DeviceImages(data, engine.device)
        anchor = normalize(engine.forward(network, images.pixels, len(images))).to(engine.device)
        destination = normalize(anchor[members].mean(dim=0, keepdim=True))
        goal = (1 - self.depth) * anchor + self.depth * destination
        backdoored = copy.deepcopy(network)

        def loss(module: nn.Module, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            clean = images.pixels(indices)
            kept, pulled = module(torch.cat([clean, trigger.apply(clean, generator)])).chunk(2)
            effectiveness = -mean_similarity(pulled, goal[indices])
            utility = -mean_similarity(kept, anchor[indices])
            return {
                "loss": effectiveness + self.utility_weight * utility,
                "effectiveness": effectiveness,
                "utility": utility,
            }

        history = engine.fit(
            self.name,
            backdoored,
            loss,
            images=len(images),
            batch_size=self.batch_size,
            epochs=self.epochs,
            optimizer=lambda parameters: SGD(parameters, lr=self.learning_rate, momentum=0.9, weight_decay=5e-4),
            train_mode=False,
        )
        return Implanted(backdoored, (trigger,), {self.name: history})

    def _own_trigger(self, image_size: int, engine: Engine) -> Trigger:
        patch = htba_patch(max(1, image_size // 4), engine.generator(f"{self.name}/trigger"))
        return PatchTrigger(patch, position="random", target=self.target, name="smooth-patch")
