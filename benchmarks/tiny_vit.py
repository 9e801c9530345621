"""Vision transformers that two CPU cores can train, as ``--arch FILE:FUNCTION``: 0.8 million parameters."""

from __future__ import annotations

from torch import nn

from sanitize.suspects.vit import Shape, vision_transformer

TINY = Shape(128, 4, 4)


def tiny_vit_32() -> nn.Module:
    """For images of 32 px: 65 tokens."""
    network: nn.Module = vision_transformer(TINY, 10, 32)
    return network


def tiny_vit_96() -> nn.Module:
    """For images of 96 px: 145 tokens."""
    network: nn.Module = vision_transformer(TINY, 10, 96)
    return network
