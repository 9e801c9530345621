"""Attention maps of feature maps, and their distance (Zagoruyko and Komodakis, ICLR 2017; Li et al., ICLR 2021)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize


def attention_map(features: Tensor, *, power: float = 2.0) -> Tensor:
    """Where a feature map is active: the sum over channels of ``|F|^power``, scaled to norm 1 for each image.

    Args:
        features: (N, C, H, W).
        power: p of Li et al. 2021, eq. 1.

    Returns:
        (N, H * W), at least 0, of Euclidean norm 1 (or 0 where all features are 0).

    Example:
        >>> attention_map(torch.tensor([[[[3.0, 0.0]], [[0.0, 12.0**0.5]]]]))
        tensor([[0.6000, 0.8000]])
    """
    return normalize(features.abs().pow(power).sum(dim=1).flatten(start_dim=1), eps=1e-6)


def attention_distance(student: Tensor, teacher: Tensor, *, power: float = 2.0) -> Tensor:
    """Mean over images of the squared Euclidean distance of attention maps: a scalar in [0, 2].

    Li et al. 2021 (eq. 2) take the mean over positions, too, so that their weights depend on the map's size:
    their beta is this distance's weight times H * W.

    Args:
        student: (N, C, H, W).
        teacher: (N, C', H, W).
        power: As in `attention_map`.
    """
    difference = attention_map(student, power=power) - attention_map(teacher, power=power)
    return difference.square().sum(dim=1).mean()


class FeatureMaps:
    """Records the outputs of named modules during each forward pass of a network.

    Args:
        network: Any network.
        names: Of its modules, whose outputs are feature maps (N, C, H, W).

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        >>> with FeatureMaps(network, ["0"]) as maps:
        ...     _ = network(torch.zeros(1, 3, 8, 8))
        ...     maps.last["0"].shape
        torch.Size([1, 4, 6, 6])
    """

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        self.last: dict[str, Tensor] = {}
        self._modules = [(name, network.get_submodule(name)) for name in names]

    def __enter__(self) -> FeatureMaps:
        self._handles = [module.register_forward_hook(self._keep(name)) for name, module in self._modules]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.ndim == 4:
                self.last.pop(name, None)  # a module that is used twice counts where it was used last
                self.last[name] = output

        return hook


class WithMaps(nn.Module):
    """A network that also gives its feature maps: images -> (outputs, maps by name).

    Args:
        network: Called, and trained where this is.
        maps: Recording it.
    """

    def __init__(self, network: nn.Module, maps: FeatureMaps) -> None:
        super().__init__()
        self.network = network
        self._maps = maps

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Outputs (N, K), and (N, C, H, W) for each of the recorded modules."""
        outputs: Tensor = self.network(images)
        return outputs, dict(self._maps.last)


def stage_names(network: nn.Module, images: Tensor) -> list[str]:
    """The modules that give the last feature map at each spatial resolution, in the order of the forward pass.

    These are the outputs of a residual network's stages. Maps of 1x1, which have no attention, are left out.

    Args:
        network: In eval mode.
        images: (N, 3, H, W) for one forward pass.
    """
    last: dict[tuple[int, int], str] = {}
    with FeatureMaps(network, [name for name, _ in network.named_modules() if name]) as maps, torch.no_grad():
        network(images)
    for name, output in maps.last.items():
        height, width = output.shape[2:]
        if height * width > 1:
            last[height, width] = name
    return list(last.values())
