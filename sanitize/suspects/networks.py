"""The two kinds of network that `sanitize` examines, with normalization inside: their input is RGB in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sanitize.errors import ArchitectureError
from sanitize.types import ModelSpec


class Network(nn.Module):
    """A backbone behind its normalization.

    Args:
        backbone: Maps normalized images (N, 3, H, W) to features (N, D) or logits (N, C).
        spec: What rebuilds and feeds it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.backbone = backbone
        self.spec = spec
        self.register_buffer("mean", torch.tensor(spec.normalization.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.normalization.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Features (N, D) of an encoder, logits (N, C) of a classifier.

        Args:
            images: (N, 3, H, W), RGB in [0, 1].
        """
        output: Tensor = self.backbone((images - self.mean) / self.std)
        return output


class Encoder(Network):
    """A network whose output is features (N, D)."""


class Classifier(Network):
    """A network whose output is logits (N, C)."""


def wrap(backbone: nn.Module, spec: ModelSpec) -> Network:
    """The network of the kind that `spec` names, in eval mode.

    Raises:
        ArchitectureError: One forward pass does not give finite (2, output_size).
    """
    network = (Encoder if spec.kind == "encoder" else Classifier)(backbone, spec).eval()
    probe_forward(network)
    return network


def probe_forward(network: Network) -> None:
    """Check one forward pass on two grey images.

    Raises:
        ArchitectureError: The pass fails, or the output is not finite (2, output_size).
    """
    spec = network.spec
    images = torch.full((2, 3, spec.image_size, spec.image_size), 0.5)
    try:
        with torch.inference_mode():
            output = network(images)
    except Exception as error:  # whatever a foreign architecture raises becomes one clear message
        raise ArchitectureError(
            f"{spec.architecture} cannot take a batch of RGB images of {spec.image_size}x{spec.image_size} px "
            f"({type(error).__name__}: {error}). Check --image-size and --arch."
        ) from error
    if not isinstance(output, Tensor) or output.shape != (2, spec.output_size):
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ArchitectureError(
            f"{spec.architecture} gave {shape} for two images where (2, {spec.output_size}) was expected; "
            f"an {spec.kind} gives one vector an image. Check --arch."
        )
    if not torch.isfinite(output).all():
        raise ArchitectureError(f"{spec.architecture} gives NaN or infinite values for a plain grey image.")
