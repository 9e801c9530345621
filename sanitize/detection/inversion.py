"""One optimisation for all methods that invert triggers: batched over targets, run by the engine."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sanitize.data import DeviceImages
from sanitize.functional.inversion import Controller, Triggers, paste
from sanitize.suspects.networks import Network
from sanitize.training import Engine, History

Objective = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]
"""(outputs (T, B, D), indices of the images (B,), generator) -> (loss (T,), success (T,) in [0, 1])."""

_BETAS = (0.5, 0.9)  # of Adam, in all three methods' code
_BLANK = 0.1  # a mask that covers less than a tenth of a pixel is none


@dataclass(frozen=True)
class Inverted:
    """Triggers that were found.

    Args:
        masks: (T, 1, H, W) in [0, 1].
        patterns: (T, 3, H, W) in [0, 1].
        sizes: (T,) share of the image that each mask covers, in (0, 1]; NaN where none was found.
        history: Of the optimisation.
    """

    masks: Tensor
    patterns: Tensor
    sizes: Tensor
    history: History

    def picture(self, target: int) -> Tensor:
        """The trigger on black, (3, H, W)."""
        return (self.masks[target] * self.patterns[target]).cpu()

    def outputs(self, network: Network, images: DeviceImages, target: int, engine: Engine) -> Tensor:
        """Outputs (N, D) of a network for all images with one of the triggers."""
        mask, pattern = self.masks[target : target + 1], self.patterns[target : target + 1]
        return engine.forward(network, lambda indices: paste(mask, pattern, images.pixels(indices))[0], len(images))


def invert(
    stage: str,
    network: Network,
    images: DeviceImages,
    objective: Objective,
    *,
    targets: int,
    controller: Controller,
    threshold: float,
    steps: int,
    batch_size: int,
    learning_rate: float,
    engine: Engine,
    scheduler: Callable[[Optimizer, int], LRScheduler] | None = None,
) -> Inverted:
    """Find the smallest trigger for each target.

    Args:
        stage: Name, for checkpoints and metrics; also of the random start.
        network: The suspect; left unchanged.
        images: Clean images; every step shows one batch of them with every trigger.
        objective: Loss and success of each trigger; the size of the mask is added here.
        targets: T.
        controller: Of the weight of the size.
        threshold: Success at or above which a trigger works.
        steps: Of Adam.
        batch_size: Images a step; T times as many go through the network.
        learning_rate: Of Adam.
        engine: Device, seed, checkpoints.
        scheduler: Of the learning rate.
    """
    size = network.spec.image_size
    triggers = Triggers(targets, size, controller, engine.generator(f"{stage}/start"))
    frozen = engine.spread(copy.deepcopy(network).to(engine.device).eval().requires_grad_(False))
    batch_size = min(batch_size, len(images))

    def loss(_: nn.Module, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        shown = triggers(images.pixels(indices))  # not rows of a batch that could be split
        with engine.fabric.autocast():
            outputs = frozen(shown.flatten(0, 1)).float().view(*shown.shape[:2], -1)
        values, success = objective(outputs, indices.to(engine.device), generator)
        sizes = triggers.sizes()
        total = (values + triggers.weights * sizes).sum()
        triggers.record(success >= threshold)
        return {"loss": total, "success": success.mean(), "size": sizes.mean()}

    history = engine.fit(
        stage,
        triggers,
        loss,
        images=len(images),
        batch_size=batch_size,
        epochs=math.ceil(steps / (len(images) // batch_size)),
        max_steps=steps,
        drop_last=True,
        optimizer=lambda parameters: Adam(parameters, lr=learning_rate, betas=_BETAS),
        scheduler=scheduler,
    )
    sizes = triggers.best_sizes
    found = sizes.isfinite() & (sizes * size * size >= _BLANK)
    return Inverted(triggers.best_masks, triggers.best_patterns, torch.where(found, sizes, torch.nan).cpu(), history)


__all__ = ["Inverted", "Objective", "invert"]
