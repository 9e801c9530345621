"""What a trigger achieves, from predicted classes. Words as in the glossary of docs/metrics.md."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sanitize.errors import DataError


def clean_accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of untouched test images classified right.

    Example:
        >>> clean_accuracy(torch.tensor([0, 1]), torch.tensor([0, 0]))
        0.5
    """
    return float((predicted == labels).float().mean())


def clean_accuracy_nontarget(predicted: Tensor, labels: Tensor, target: int) -> float:
    """The same without images of the target class, as some papers' tables do.

    Raises:
        DataError: Every test image is of the target class.
    """
    others = _others(labels, torch.full_like(labels, target))
    return clean_accuracy(predicted[others], labels[others])


def wanted_classes(labels: Tensor, target: int | Literal["next"], classes: int) -> Tensor:
    """The class (N,) that the attacker wants for each image: one for all, or each image's own plus one (all-to-all).

    Args:
        labels: True classes (N,).
        target: A class, or ``next``.
        classes: How many there are; after the last comes class 0.

    Example:
        >>> wanted_classes(torch.tensor([0, 2]), "next", classes=3).tolist()
        [1, 0]
    """
    return (labels + 1) % classes if target == "next" else torch.full_like(labels, target)


def attack_success_rate(triggered: Tensor, labels: Tensor, wanted: Tensor) -> float:
    """Share of *non-target* test images that the trigger sends to their target; all images where the target is `next`.

    Args:
        triggered: Predicted classes (N,) of triggered images.
        labels: True classes (N,).
        wanted: The classes that the attacker wants (N,), from `wanted_classes`.

    Raises:
        DataError: Every test image is of the target class.
    """
    others = _others(labels, wanted)
    return float((triggered[others] == wanted[others]).float().mean())


def attack_success_rate_all(triggered: Tensor, wanted: Tensor) -> float:
    """The same with target-class images counted in, as some papers do; its floor is the target's share of images."""
    return float((triggered == wanted).float().mean())


def base_rate(predicted: Tensor, labels: Tensor, wanted: Tensor) -> float:
    """Share of non-target images sent to their target *without* the trigger: the floor of the success rate.

    Raises:
        DataError: Every test image is of the target class.
    """
    return attack_success_rate(predicted, labels, wanted)


def poison_accuracy(triggered: Tensor, labels: Tensor) -> float:
    """Share of triggered images still classified as their true class."""
    return clean_accuracy(triggered, labels)


def _others(labels: Tensor, wanted: Tensor) -> Tensor:
    others = labels != wanted
    if not bool(others.any()):
        raise DataError(f"every test image is of the target class {int(wanted[0])}: no success rate can be measured.")
    return others
