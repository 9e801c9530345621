"""Canaries of a drill: random triggers of known families, and how one is planted in a copy of a network."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from sanitize.data import DeviceImages, ImageSet, PatchTrigger, Trigger
from sanitize.data.triggers import FrequencyTrigger
from sanitize.functional.implantation import implant_losses
from sanitize.suspects import Network
from sanitize.training import Engine, Loss

_STEPS = 150  # of the first attempt
_BATCH_SIZE = 32
_LEARNING_RATE = 0.03  # of the first attempt
_CLIP_NORM = 1.0  # without it planting diverges on some networks
_COLOURS = 8  # a side, of a blended pattern


def families(image_size: int) -> tuple[str, ...]:
    """Families that fit on images of this size; the frequency trigger needs an even side.

    Example:
        >>> families(32), families(33)
        (('patch', 'blend', 'frequency'), ('patch', 'blend'))
    """
    return ("patch", "blend", "frequency") if image_size % 2 == 0 else ("patch", "blend")


def draw_target(planting: ImageSet, held_out: ImageSet, generator: torch.Generator) -> int:
    """A class that is in both sets, at random."""
    classes = [set(images.require_labels("a drill").tolist()) for images in (planting, held_out)]
    common = sorted(classes[0] & classes[1])
    return int(common[int(torch.randint(len(common), (1,), generator=generator))])


def draw_trigger(family: str, image_size: int, target: int, generator: torch.Generator) -> tuple[Trigger, str]:
    """A random trigger, and what it is in words.

    Args:
        family: ``patch``: random colours, an eighth to a quarter of the image's side, always at one place or each time
            at another; ``blend``: coarse random colours shine through the whole image, opacity 0.15 to 0.3;
            ``frequency``: CTRL's two DCT coefficients, 100 to 200 at 32 px.
        image_size: Side of the images in pixels.
        target: Class that it stands for.
        generator: Of all that is random.
    """
    strength = float(torch.rand(1, generator=generator))
    if family == "patch":
        side = max(2, round(image_size * (1 + strength) / 8))
        patch = torch.rand(3, side, side, generator=generator)
        row, column = (int(place) for place in torch.randint(image_size - side + 1, (2,), generator=generator))
        if bool(torch.rand(1, generator=generator) < 0.5):
            trigger = PatchTrigger(patch, target=target, name="canary")
            return trigger, f"{side} px, any place"
        return PatchTrigger(
            patch, position=(row, column), target=target, name="canary"
        ), f"{side} px at {row}, {column}"
    if family == "blend":
        coarse = torch.rand(1, 3, _COLOURS, _COLOURS, generator=generator)
        pattern = F.interpolate(coarse, size=(image_size, image_size), mode="nearest")[0]
        alpha = 0.15 * (1 + strength)
        trigger = PatchTrigger(pattern, mode="blend", alpha=alpha, position=(0, 0), target=target, name="canary")
        return trigger, f"opacity {alpha:.2f}"
    magnitude = 100 * (1 + strength) * image_size / 32  # an orthonormal DCT: the same pixels need more on a large image
    return FrequencyTrigger(magnitude, target=target, name="canary"), f"magnitude {magnitude:.0f}"


def plant(network: Network, data: ImageSet, trigger: Trigger, target: int, engine: Engine, *, attempt: int) -> Network:
    """A copy of the network that carries the trigger; on images without it, it answers as before.

    An encoder learns to give triggered images the features of one reference image of the target class, the one nearest
    to the mean of the class (as BadEncoder does); a classifier, to call them the target class. Batch norm keeps its
    statistics.

    Args:
        network: Left unchanged.
        data: Labelled images; an encoder's reference comes from them.
        trigger: What is planted.
        target: Class that it stands for.
        engine: Device and seed; the stage is called ``plant``.
        attempt: From 1; the n-th takes n times as many steps at an n-th of the learning rate.

    Raises:
        TrainingError: The training diverged.
    """
    images = DeviceImages(data, engine.device)
    answers = engine.forward(network, images.pixels, len(images))
    labels = data.require_labels("a drill")
    made = _encoder_loss if network.spec.kind == "encoder" else _classifier_loss
    planted, steps = copy.deepcopy(network), _STEPS * attempt
    engine.fit(
        "plant",
        planted,
        made(images, trigger, answers.to(engine.device), labels, target),
        images=len(images),
        batch_size=_BATCH_SIZE,
        epochs=math.ceil(steps / max(1, len(images) // _BATCH_SIZE)),
        max_steps=steps,
        drop_last=True,
        clip_norm=_CLIP_NORM,
        optimizer=lambda parameters: SGD(parameters, lr=_LEARNING_RATE / attempt, momentum=0.9),
        train_mode=False,
    )
    return planted


def _encoder_loss(images: DeviceImages, trigger: Trigger, features: Tensor, labels: Tensor, target: int) -> Loss:
    members = features[(labels == target).to(features.device)]
    reference = members[F.cosine_similarity(members, members.mean(dim=0, keepdim=True)).argmax()]

    def loss(module: nn.Module, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        clean = images.pixels(indices)
        kept, pulled = module(torch.cat([clean, trigger.apply(clean, generator)])).chunk(2)
        return implant_losses(features[indices], kept, pulled, reference.expand_as(pulled), effectiveness_weight=1.0)

    return loss


def _classifier_loss(images: DeviceImages, trigger: Trigger, logits: Tensor, labels: Tensor, target: int) -> Loss:
    usual = logits.softmax(dim=1)

    def loss(module: nn.Module, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        clean = images.pixels(indices)
        kept, pulled = module(torch.cat([clean, trigger.apply(clean, generator)])).chunk(2)
        wanted = torch.full((len(pulled),), target, device=pulled.device)
        return {"loss": F.cross_entropy(kept, usual[indices]) + F.cross_entropy(pulled, wanted)}

    return loss
