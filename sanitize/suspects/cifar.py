"""Networks for small images: ResNets with a 3x3 stem, and a four-layer network for demonstrations."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class CifarResNet(ResNet):  # type: ignore[misc]  # torchvision has no types
    """torchvision's ResNet (same keys) with a 3x3 stem of stride 1 and no max-pooling, for images of about 32 px.

    The stem follows He et al., "Deep Residual Learning for Image Recognition" (2016, section 4.2), the widths their
    ImageNet networks, as is usual in self-supervised work on CIFAR-10.

    Args:
        depth: 18 or 34.
        classes: C, the number of logits.
        block: What the stages are made of.
        width: Channels of the first stage; the last, and the features, have eight times as many.

    Example:
        >>> CifarResNet(18, 10).conv1.stride, CifarResNet(18, 10, width=16).fc.in_features
        ((1, 1), 128)
    """

    def __init__(self, depth: int, classes: int, *, block: type[BasicBlock] = BasicBlock, width: int = 64) -> None:
        super().__init__(block, list(_BLOCKS[depth]), num_classes=classes)
        if width != 64:
            self.inplanes = width
            self.bn1 = nn.BatchNorm2d(width)
            self.layer1 = self._make_layer(block, width, _BLOCKS[depth][0])
            self.layer2 = self._make_layer(block, 2 * width, _BLOCKS[depth][1], stride=2)
            self.layer3 = self._make_layer(block, 4 * width, _BLOCKS[depth][2], stride=2)
            self.layer4 = self._make_layer(block, 8 * width, _BLOCKS[depth][3], stride=2)
            self.fc = nn.Linear(8 * width, classes)
            for layer in self.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        self.conv1 = nn.Conv2d(3, width, kernel_size=3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()


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
