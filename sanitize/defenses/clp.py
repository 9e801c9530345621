"""CLP: without any data, switch off the channels whose Lipschitz constant is an outlier of their layer."""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sanitize.data import ImageSet
from sanitize.defenses.base import Need, Paper, Purified, Purifier
from sanitize.errors import ConfigError
from sanitize.functional.lipschitz import channel_lipschitz, deviations
from sanitize.suspects.networks import Network
from sanitize.training import Engine
from sanitize.types import Finding, ModelKind, Severity

Pair = tuple[str, nn.Conv2d, _BatchNorm]
"""Name of the batch norm, the convolution that feeds it, and the batch norm itself."""


class CLP(Purifier):
    """Channel-Lipschitzness-based Pruning, for encoders and classifiers, from the network alone.

    A trigger must move features far with few pixels, so some channel must be steep. For every batch norm that a
    convolution feeds, the kernels are folded with the batch norm's factor, and channels whose largest singular value
    lies `threshold` standard deviations above their layer's mean are set to zero (Zheng et al. 2022, eq. 9 and 10).
    All layers are scored on the suspect, once.

    Differs from the paper:
        - Its code pairs a batch norm with the convolution defined last before it, which is another layer in
          pre-activation and squeeze-and-excitation networks. Here the pairs come from the traced graph.
        - The batch norm's epsilon is added to the variance, as in its forward pass.

    Example:
        >>> CLP(threshold=4.0).threshold
        4.0
    """

    name: ClassVar[str] = "clp"
    summary: ClassVar[str] = "prune channels with outlying Lipschitz constants; needs no data"
    paper: ClassVar[Paper] = Paper(
        "Data-free Backdoor Removal based on Channel Lipschitzness",
        "Zheng, Tang, Li, Liu; ECCV 2022",
        "https://arxiv.org/abs/2208.03111",
    )
    kinds: ClassVar[frozenset[ModelKind]] = frozenset({"encoder", "classifier"})
    needs: ClassVar[frozenset[Need]] = frozenset({Need.MODEL})

    threshold: float = Field(3.0, ge=0, description="u: standard deviations above the layer's mean; lower prunes more")

    def purify(self, network: Network, data: ImageSet | None, engine: Engine) -> Purified:
        """Score all layers, then prune; see the class. `data` and randomness are not used.

        Raises:
            ConfigError: The network cannot be traced, or no convolution feeds a batch norm.
        """
        cleaned = copy.deepcopy(network).to(engine.device).eval()
        deviating = {name: (norm, channel_deviations(convolution, norm)) for name, convolution, norm in pairs(cleaned)}
        pruned: dict[str, list[int]] = {}
        for name, (norm, scores) in deviating.items():
            outliers = scores > self.threshold
            with torch.no_grad():
                norm.weight[outliers] = 0
                norm.bias[outliers] = 0
            if channels := torch.nonzero(outliers).flatten().tolist():
                pruned[name] = channels
        scored = torch.cat([scores for _, scores in deviating.values()])
        kept = scored[scored <= self.threshold]
        return Purified(
            cleaned,
            before={"pruned_channels": 0.0, "largest_channel_deviation": float(scored.max())},
            after={
                "pruned_channels": float(len(scored) - len(kept)),
                "largest_channel_deviation": float(kept.max()) if len(kept) else None,
            },
            history={},
            findings=[self._finding(pruned, len(scored))],
        )

    def _finding(self, pruned: dict[str, list[int]], scored: int) -> Finding:
        count = sum(map(len, pruned.values()))
        return Finding(
            rule="clp-pruned-channels",
            severity=Severity.NOTE,
            message=f"{count} of {scored} channels lie more than {self.threshold:g} standard deviations above their "
            "layer's mean Lipschitz constant and were pruned; clean networks have such channels, too.",
            evidence={"channels": pruned, "threshold": self.threshold, "scored": scored},
        )


def channel_deviations(convolution: nn.Conv2d, norm: _BatchNorm) -> Tensor:
    """Standard deviations (C,) by which each channel's Lipschitz constant exceeds the layer's mean."""
    assert norm.running_var is not None  # pairs() has seen to it
    scale = norm.weight.abs() / (norm.running_var + norm.eps).sqrt()
    return deviations(channel_lipschitz(convolution.weight, scale))


def pairs(network: Network) -> list[Pair]:
    """Each batch norm with weights and statistics that is fed by a convolution, in the order of the graph.

    Raises:
        ConfigError: The network cannot be traced, or has no such pair.
    """
    architecture = network.spec.architecture
    try:
        graph = fx.symbolic_trace(network.backbone).graph
    except Exception as error:  # whatever a foreign forward does with a proxy becomes one clear message
        raise ConfigError(
            f"clp pairs convolutions with batch norm on the traced graph, and torch.fx cannot trace {architecture} "
            f"({type(error).__name__}: {str(error)[:200]}). Its forward must not depend on values; "
            "give an --arch that can be traced, or another method."
        ) from error
    modules = dict(network.backbone.named_modules())
    found: dict[str, Pair] = {}
    for node in graph.nodes:
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, _BatchNorm) or norm.weight is None or norm.running_var is None:
            continue
        source = _skip_identities(node.all_input_nodes[0], modules)
        convolution = modules.get(str(source.target)) if source.op == "call_module" else None
        if isinstance(convolution, nn.Conv2d):
            found[str(node.target)] = (str(node.target), convolution, norm)
    if not found:
        raise ConfigError(
            f"clp needs batch norm (with weights and running statistics) directly behind convolutions, and "
            f"{architecture} has none. Choose another method."
        )
    return list(found.values())


def _skip_identities(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node:
    while node.op == "call_module" and isinstance(modules[str(node.target)], nn.Identity):
        node = node.all_input_nodes[0]
    return node
