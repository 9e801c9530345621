"""Residual blocks that weigh their channels, for the SENets of small images."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchvision.models.resnet import BasicBlock
from torchvision.ops import SqueezeExcitation

REDUCTION = 16


class SEBlock(BasicBlock):  # type: ignore[misc]  # torchvision has no types
    """torchvision's `BasicBlock` with squeeze-and-excitation before the sum (Hu et al., CVPR 2018, figure 3).

    Differs from the paper: the two layers of the excitation are 1x1 convolutions, which is the same function.

    Example:
        >>> import torch
        >>> SEBlock(64, 64)(torch.rand(2, 64, 8, 8)).shape
        torch.Size([2, 64, 8, 8])
    """

    def __init__(self, inplanes: int, planes: int, *args: Any, **options: Any) -> None:
        super().__init__(inplanes, planes, *args, **options)
        self.se = SqueezeExcitation(planes, max(1, planes // REDUCTION))

    def forward(self, x: Tensor) -> Tensor:
        """(N, planes, H', W') of (N, inplanes, H, W)."""
        residual = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        shortcut = x if self.downsample is None else self.downsample(x)
        output: Tensor = self.relu(self.se(residual) + shortcut)
        return output
