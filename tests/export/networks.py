"""Small networks that the export tests share."""

from __future__ import annotations

import torch
from torch import nn

from sanitize.suspects.architectures import build
from sanitize.suspects.networks import Network, wrap
from sanitize.types import ModelKind, ModelSpec, Normalization


def network(
    name: str = "small-cnn", *, kind: ModelKind = "encoder", image_size: int = 32, normalization: str = "cifar10"
) -> Network:
    """A network with random weights and batch-norm statistics, so that no layer is trivial."""
    torch.manual_seed(0)
    built = build(name, kind=kind, image_size=image_size, classes=7 if kind == "classifier" else None)
    for module in built.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return wrap(
        built.backbone, spec(name, built.output_size, kind=kind, image_size=image_size, normalization=normalization)
    )


def local(backbone: nn.Module, output_size: int, *, image_size: int = 16) -> Network:
    return wrap(backbone.eval(), spec("own.py:make", output_size, image_size=image_size))


def spec(
    name: str, output_size: int, *, kind: ModelKind = "encoder", image_size: int = 32, normalization: str = "cifar10"
) -> ModelSpec:
    return ModelSpec(
        kind=kind,
        architecture=name,
        normalization=Normalization.named(normalization),
        image_size=image_size,
        output_size=output_size,
    )
