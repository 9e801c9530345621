"""Finds the head of a network, by the names that classification networks give it, and takes it off."""

from __future__ import annotations

import re

from torch import nn

HEAD_CHILDREN = ("fc", "classifier", "heads", "head", "linear")
"""Names of top-level children that hold the head: torchvision's, timm's, and those of common CIFAR code."""

AUXILIARY = ("aux1", "aux2", "AuxLogits")
"""Heads that torchvision's GoogLeNet and Inception use in training only."""

_HEAD = re.compile(
    r"fc|heads?|classifiers?|linear|logits|(fc|cls|classification|linear|dino|ibot)_(head|layer|classifier)|head_dist|"
    r"aux\d|aux_?logits|aux_classifier|g|"
    r"(\w+_)?(projector|projection|proj_head|projection_head|predictor|prediction_head|prediction)(_\w+)?|prototypes|"
    r"online_head|contrastive_head|mlp_head",
    re.IGNORECASE,
)
_MOMENTUM = re.compile(
    r"encoder_k|key_encoder|(\w+_)?momentum(_\w+)?|\w+_m|teacher(_\w+)?|(\w+_)?target(_\w+)?|(\w+_)?ema(_\w+)?|"
    r"queue(_\w+)?|center|n_averaged",
    re.IGNORECASE,
)


def find_head(network: nn.Module) -> str | None:
    """Dotted name of the layer that gives the logits, or None.

    It is the last linear layer (without any: the last convolution) in the top-level child that is named like a head.

    Example:
        >>> from torchvision.models import vgg11
        >>> find_head(vgg11())
        'classifier.6'
    """
    children = dict(network.named_children())
    for child in (name for name in HEAD_CHILDREN if name in children):
        for kind in (nn.Linear, nn.Conv2d):
            layers = [name for name, layer in children[child].named_modules() if isinstance(layer, kind)]
            if layers:
                return f"{child}.{layers[-1]}" if layers[-1] else child
    return None


def remove_head(network: nn.Module, head: str) -> None:
    """Replace the layer named `head` by the identity, so that the network gives its penultimate features."""
    parent, _, name = head.rpartition(".")
    setattr(network.get_submodule(parent), name, nn.Identity())


def is_head(component: str) -> bool:
    """Whether a part of a key names a head, projector or predictor.

    Example:
        >>> is_head("projector"), is_head("layer1")
        (True, False)
    """
    return _HEAD.fullmatch(component) is not None


def is_momentum(component: str) -> bool:
    """Whether a part of a key names a momentum copy, a teacher or the queue of a self-supervised method.

    Example:
        >>> is_momentum("encoder_k"), is_momentum("encoder_q")
        (True, False)
    """
    return _MOMENTUM.fullmatch(component) is not None
