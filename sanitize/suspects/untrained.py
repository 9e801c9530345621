"""A network with random weights that depend on the seed alone."""

from __future__ import annotations

import torch

from sanitize.suspects.architectures import build
from sanitize.suspects.networks import Network, wrap
from sanitize.types import ModelKind, ModelSpec, Normalization


def untrained(
    architecture: str,
    *,
    kind: ModelKind,
    image_size: int,
    normalization: str = "none",
    classes: int | None = None,
    seed: int = 0,
) -> Network:
    """Build and wrap a network; in eval mode.

    Args:
        architecture: Built-in or torchvision name, or the defender's ``file.py:function``.
        kind: ``encoder`` or ``classifier``.
        image_size: Pixels.
        normalization: Name of the normalization.
        classes: Of a classifier.
        seed: Of the weights.

    Raises:
        ConfigError: A name is unknown.
        ArchitectureError: The network does not fit such images.

    Example:
        >>> untrained("small-cnn", kind="classifier", image_size=32, classes=10).spec.output_size
        10
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # layers are initialised by torch's global generator
        made = build(architecture, kind=kind, image_size=image_size, classes=classes)
    spec = ModelSpec(
        kind=kind,
        architecture=architecture,
        normalization=Normalization.named(normalization),
        image_size=image_size,
        output_size=made.output_size,
    )
    return wrap(made.backbone, spec)
