"""What a trigger achieves, from predicted classes. Words as in the glossary of docs/metrics.md."""

from __future__ import annotations

from torch import Tensor

from sanitize.errors import DataError


def clean_accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of untouched test images classified right.

    Example:
        >>> import torch
        >>> clean_accuracy(torch.tensor([0, 1]), torch.tensor([0, 0]))
        0.5
    """
    return float((predicted == labels).float().mean())


def attack_success_rate(triggered: Tensor, labels: Tensor, target: int) -> float:
    """Share of *non-target* test images that the trigger sends to the target.

    Args:
        triggered: Predicted classes (N,) of triggered images.
        labels: True classes (N,).
        target: The attacker's class.

    Raises:
        DataError: Every test image is of the target class.
    """
    others = _others(labels, target)
    return float((triggered[others] == target).float().mean())


def attack_success_rate_all(triggered: Tensor, target: int) -> float:
    """The same with target-class images counted in, as some papers do; its floor is the target's share of images."""
    return float((triggered == target).float().mean())


def base_rate(predicted: Tensor, labels: Tensor, target: int) -> float:
    """Share of non-target images sent to the target *without* the trigger: the floor of the success rate.

    Raises:
        DataError: Every test image is of the target class.
    """
    return attack_success_rate(predicted, labels, target)


def poison_accuracy(triggered: Tensor, labels: Tensor) -> float:
    """Share of triggered images still classified as their true class."""
    return clean_accuracy(triggered, labels)


def _others(labels: Tensor, target: int) -> Tensor:
    others = labels != target
    if not bool(others.any()):
        raise DataError(f"every test image is of the target class {target}: no success rate can be measured.")
    return others
