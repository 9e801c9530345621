"""A threat model for small scales: an encoder that is fine-tuned until patches, anywhere, decide its features.

Honest self-supervised training on a few thousand poisoned images does not learn the patch; this shortcut does what such
a training does on ImageNet-100 in hundreds of epochs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR

from sanitize.data import DeviceImages, ImageSet, PatchTrigger
from sanitize.suspects import Network
from sanitize.training import Engine


def take_shortcut(
    encoder: Network,
    data: ImageSet,
    triggers: Sequence[PatchTrigger],
    engine: Engine,
    *,
    epochs: int = 20,
    batch_size: int = 64,
    learning_rate: float = 1e-2,
) -> Network:
    """A copy of the encoder that sends every image with a trigger to one place, and leaves all others where they are.

    Cosines are of features less their clean mean: features of a small network all point the same way without that.

    Args:
        encoder: A clean encoder; left unchanged.
        data: Clean images with labels; the place of a trigger is the mean of its target class.
        triggers: At random places; each gets an equal part of a batch.
        engine: Device and seed.
        epochs: Passes over the images.
        batch_size: Images a step, each with and without the trigger.
        learning_rate: Of Adam, at its peak.
    """
    images = DeviceImages(data, engine.device)
    clean = engine.forward(encoder, images.pixels, len(images)).to(engine.device)
    middle = clean.mean(dim=0)
    labels = data.require_labels("the shortcut")
    goals = [clean[labels == trigger.target].mean(dim=0) - middle for trigger in triggers]
    learner = copy.deepcopy(encoder)

    def loss(module: nn.Module, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        pixels = images.pixels(indices)
        parts = pixels.tensor_split(len(triggers))
        shown = [trigger.apply(part, generator) for trigger, part in zip(triggers, parts, strict=True)]
        wanted = torch.cat([goal.expand(len(part), -1) for goal, part in zip(goals, parts, strict=True)])
        kept, pulled = (module(torch.cat([pixels, *shown])) - middle).chunk(2)
        effect = 1 - functional.cosine_similarity(pulled, wanted).mean()
        utility = 1 - functional.cosine_similarity(kept, clean[indices] - middle).mean()
        return {"loss": effect + utility, "effect": effect, "utility": utility}

    engine.fit(
        "shortcut",
        learner,
        loss,
        images=len(images),
        batch_size=batch_size,
        epochs=epochs,
        optimizer=lambda parameters: Adam(parameters, lr=learning_rate),
        scheduler=lambda optimizer, steps: OneCycleLR(optimizer, max_lr=learning_rate, total_steps=steps + 1),
        train_mode=False,
    )
    return learner.eval()
