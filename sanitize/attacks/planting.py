"""What attacks have in common: refusals before any work, images of a class, and pixels with a trigger on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sanitize.data import ImageSet, Trigger
from sanitize.errors import ConfigError, DataError
from sanitize.suspects.networks import Network

_CHUNK = 1024  # images at a time, as floats


def images_of_class(data: ImageSet, target: int, attack: str) -> Tensor:
    """Indices (M,) of the images of the target class, in order.

    Raises:
        DataError: There are no labels, or no image of the class.
    """
    labels = data.require_labels(f"the attack {attack}")
    indices = torch.nonzero(labels == target).flatten()
    if not len(indices):
        raise DataError(
            f"{attack}: no image of {data.uri or 'the data'} is of the target class {target}; its classes are "
            f"{int(labels.min())} to {int(labels.max())}. Choose another target."
        )
    return indices


def typical_images(features: Tensor, labels: Tensor, target: int) -> Tensor:
    """Indices (M,) of the images of the target class, those first that stand for it most clearly.

    An attacker picks a good picture of the class: a reference that the encoder itself takes for another class leads
    triggered images there. The measure is a nearest-mean classifier's margin, on centred features of length one.

    Args:
        features: (N, D), of the clean encoder.
        labels: (N,).
        target: A class that occurs.

    Example:
        >>> typical_images(torch.tensor([[0.1, 1.0], [1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0, 0, 1]), 0)
        tensor([1, 0])
    """
    centred = normalize(features.cpu() - features.cpu().mean(dim=0))
    members = torch.nonzero(labels == target).flatten()
    own = centred[members] @ normalize(centred[members].mean(dim=0), dim=0)
    means = [centred[labels == other].mean(dim=0) for other in set(labels.tolist()) - {target}]
    others = centred[members] @ normalize(torch.stack(means)).T if means else torch.zeros(len(members), 1)
    return members[(own - others.amax(dim=1)).argsort(descending=True, stable=True)]


def require_fit(triggers: Sequence[Trigger], data: ImageSet) -> None:
    """Try every trigger on one image.

    Raises:
        ConfigError: One does not fit.
    """
    for trigger in triggers:
        trigger.apply(data.images[:1].float() / 255)


def class_target(trigger: Trigger, attack: str) -> int:
    """The class that a trigger stands for.

    Raises:
        ConfigError: It has no target, or ``next``.
    """
    if not isinstance(trigger.target, int):
        raise ConfigError(
            f"{attack}: trigger {trigger.name!r} has target {trigger.target}, and this attack pulls images onto one "
            "class. Set `target` in its specification to the index of a class."
        )
    return trigger.target


def one_trigger(given: Sequence[Trigger], own: Trigger, attack: str) -> tuple[Trigger, int]:
    """The trigger of an attack that plants one, and its class.

    Raises:
        ConfigError: Several were given, or the one has no target.
    """
    if len(given) > 1:
        raise ConfigError(f"{attack} plants one trigger, and {len(given)} were given.")
    trigger = given[0] if given else own
    return trigger, class_target(trigger, attack)


def require_encoder(network: Network, attack: str) -> None:
    """Refuse a classifier.

    Raises:
        ConfigError: It is one.
    """
    if network.spec.kind != "encoder":
        raise ConfigError(f"{attack} works on encoders, and this network is a {network.spec.kind}.")


def stamped(data: ImageSet, chosen: Tensor, trigger: Trigger, generator: torch.Generator) -> ImageSet:
    """The data set with the trigger on the chosen images; rounded to 8 bit, all others byte by byte as they were.

    Args:
        data: Left unchanged.
        chosen: (N,) bool.
        trigger: What is put on them.
        generator: Of what is random in it.
    """
    images = data.images.clone()
    for indices in torch.split(torch.nonzero(chosen).flatten(), _CHUNK):
        pixels = trigger.apply(images[indices].float() / 255, generator)
        images[indices] = (pixels * 255).round().to(torch.uint8)
    return replace(data, images=images)


def drawn_mask(candidates: Tensor, count: int, total: int, generator: torch.Generator) -> Tensor:
    """(total,) bool: `count` of the candidates' indices, at random."""
    mask = torch.zeros(total, dtype=torch.bool)
    mask[candidates[torch.randperm(len(candidates), generator=generator)[:count]]] = True
    return mask
