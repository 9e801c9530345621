"""Networks without attention that are as large as those with it: narrower ones, as ``--arch FILE:FUNCTION``."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from sanitize.suspects.cifar import CifarResNet, SmallCNN


class NarrowCNN(SmallCNN):
    """As large as `small-cnn-attention`: 54,000 parameters before the head, and 53,000."""

    WIDTHS: ClassVar[tuple[int, ...]] = (16, 32, 48, 80)  # type: ignore[assignment,misc]


def small_cnn() -> nn.Module:
    """For `small-cnn-attention`."""
    return NarrowCNN(10)


def resnet18_cifar() -> nn.Module:
    """For `resnet18-cifar-attention`: 4.4 million parameters before the head, and 4.2."""
    return CifarResNet(18, 10, width=40)
