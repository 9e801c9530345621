"""PatchSearch: which window of an image decides its cluster, found by Grad-CAM."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import VisionTransformer

from sanitize.detection.base import Paper
from sanitize.detection.flip_test import Assigner
from sanitize.detection.window_search import Attention
from sanitize.detection.windows import WindowDetector
from sanitize.errors import ArchitectureError
from sanitize.suspects.networks import Network
from sanitize.training import Engine


class PatchSearch(WindowDetector):
    """PatchSearch (Tejankar et al., CVPR 2023): Grad-CAM on the clusters, flip test, poison classifier.

    The normalised cluster centres are taken for a linear layer, and Grad-CAM of an image's own cluster gives its
    attention map. What follows is in `WindowDetector`; each window is tried on all flip images. It is the baseline of
    PoisonCAM.

    Differs from the paper:
        - Evidence is asked for first; without it nothing is removed. After it, the images that are left get another
          look.
        - Below 10,000 images all are scored; windows are tried on 180 images.
        - Features are normalised in the flip test as they are for the clusters; the released code does not do it there.
        - Logits are products of features and centres, not cosines, whose gradient vanishes for an image at its
          centre: on digits the windows caught 75 % of the triggers' area instead of 1 %.
        - Weak colour changes and no grey for the poison classifier.

    Example:
        >>> PatchSearch(search="iterative").flip_test
        'plain'
    """

    name: ClassVar[str] = "patchsearch"
    summary: ClassVar[str] = "the same with windows by Grad-CAM: the baseline of poisoncam"
    paper: ClassVar[Paper] = Paper(
        "Defending Against Patch-based Backdoor Attacks on Self-Supervised Learning",
        "Tejankar, Sanjabi, Wang, Wang, Firooz, Pirsiavash, Tan; CVPR 2023",
        "https://arxiv.org/abs/2304.01482",
    )

    flip_test: Literal["halving", "plain"] = Field(
        "plain", description="drop the worse half of the windows after few images, or try all on all"
    )

    def attention(self, assign: Assigner, image_size: int, engine: Engine) -> Attention:
        """See `WindowDetector.attention`.

        Raises:
            ArchitectureError: The network has no layer with maps.
        """
        layer = map_layer(assign.network, engine.device)

        def maps(images: Tensor) -> Tensor:
            parts = torch.split(images, assign.batch_size)
            return torch.cat([grad_cam(assign.network, layer, assign.centres, part) for part in parts])

        return maps


def map_layer(network: Network, device: torch.device) -> nn.Module:
    """The last layer that gives maps (N, C, h, w); of a vision transformer the last block's first norm.

    Raises:
        ArchitectureError: There is none.
    """
    if isinstance(network.backbone, VisionTransformer):
        block: nn.Module = network.backbone.encoder.layers[-1]
        found: nn.Module = block.get_submodule("ln_1")
        return found
    last: list[nn.Module] = []

    def see(module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
            last[:] = [module]

    leaves = [module for module in network.backbone.modules() if not list(module.children())]
    handles = [module.register_forward_hook(see) for module in leaves]
    size = network.spec.image_size
    with torch.inference_mode():
        network(torch.zeros(1, 3, size, size, device=device))
    for handle in handles:
        handle.remove()
    if not last:
        raise ArchitectureError(
            f"{network.spec.architecture} has no layer that gives maps, which Grad-CAM needs. Use --method poisoncam."
        )
    return last[0]


def grad_cam(network: Network, layer: nn.Module, centres: Tensor, images: Tensor) -> Tensor:
    """Grad-CAM (Selvaraju et al., ICCV 2017) of each image's own cluster: the centres are a linear layer.

    Args:
        network: In eval mode.
        layer: From `map_layer`.
        centres: (K, D) of the clusters, which are normalised here.
        images: (B, 3, H, W) in [0, 1].

    Returns:
        (B, H, W) float32, at least 0.
    """
    with torch.enable_grad(), _outputs(layer) as seen:
        logits = network(images.clone().requires_grad_()).float() @ functional.normalize(centres).T
        (gradient,) = torch.autograd.grad(logits.amax(dim=1).sum(), seen[-1:])
    activation = seen[-1].detach()
    if activation.ndim == 3:  # tokens of a vision transformer, the class token first
        side = round((activation.shape[1] - 1) ** 0.5)
        activation, gradient = (part[:, 1:].mT.reshape(len(part), -1, side, side) for part in (activation, gradient))
    cam = (activation * gradient.mean(dim=(2, 3), keepdim=True)).sum(dim=1, keepdim=True).relu()
    return functional.interpolate(cam.float(), images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


@contextmanager
def _outputs(layer: nn.Module) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, _, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()
