"""The built-in networks for small images: ResNets with a 3x3 stem, and a four-layer network for demonstrations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torchvision
from torch import Tensor, nn


def cifar_resnet(depth: int, classes: int) -> nn.Module:
    """torchvision's ResNet (same keys) with a 3x3 stem of stride 1 and no max-pooling, for images of about 32 px.

    The stem follows He et al., "Deep Residual Learning for Image Recognition" (2016, section 4.2), the widths their
    ImageNet networks, as is usual in self-supervised work on CIFAR-10.

    Example:
        >>> cifar_resnet(18, 10).conv1.stride
        (1, 1)
    """
    network: nn.Module = getattr(torchvision.models, f"resnet{depth}")(weights=None, num_classes=classes)
    network.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    return network


class SmallCNN(nn.Module):
    """Four 3x3 conv-BN layers of 16, 32, 64 and 128 channels with max-pooling between, average-pooled; one linear.

    There is no ReLU before the average: non-negative features of so small a network all point the same way, and losses
    of cosines (SimCLR's, BadEncoder's) then have little to work with.

    Args:
        classes: C, the number of logits.
    """

    WIDTHS = (16, 32, 64, 128)

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in self.WIDTHS:
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
            layers += [nn.ReLU(), nn.MaxPool2d(2)]
            channels = width
        self.features = nn.Sequential(*layers[:-2])
        self.fc = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C) of images (N, 3, H, W)."""
        output: Tensor = self.fc(self.features(images).mean(dim=(2, 3)))
        return output


BUILT_IN: dict[str, Callable[[int], nn.Module]] = {
    "resnet18-cifar": partial(cifar_resnet, 18),
    "resnet34-cifar": partial(cifar_resnet, 34),
    "small-cnn": SmallCNN,
}
"""Name -> function of the number of classes."""
