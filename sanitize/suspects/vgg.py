"""VGG for small images: torchvision's convolutions with batch norm, and one linear layer."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

_CONFIGURATIONS = {11: "A", 16: "D"}


class CifarVGG(nn.Module):
    """VGG with batch norm (Simonyan and Zisserman, ICLR 2015, table 1) for images of 32 px or more; 512 features.

    Five poolings leave one pixel of 32; larger images are averaged.

    Differs from the paper: batch norm after each convolution, and one linear layer instead of three, as is usual on
    CIFAR-10 (the layout whose keys are ``features.*`` and ``classifier.*``).

    Args:
        depth: 11 or 16.
        classes: C, the number of logits.

    Example:
        >>> CifarVGG(11, 10).classifier.in_features
        512
    """

    def __init__(self, depth: int, classes: int) -> None:
        super().__init__()
        self.features = make_layers(cfgs[_CONFIGURATIONS[depth]], batch_norm=True)
        self.classifier = nn.Linear(512, classes)
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C) of images (N, 3, H, W)."""
        output: Tensor = self.classifier(self.features(images).mean(dim=(2, 3)))
        return output
