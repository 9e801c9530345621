"""Vision transformers whose patches fit the size of the images."""

from __future__ import annotations

from typing import NamedTuple

from torchvision.models import VisionTransformer

from sanitize.errors import ConfigError


class Shape(NamedTuple):
    """Width of the tokens, blocks, and heads of the attention; the MLPs are four times as wide."""

    width: int
    blocks: int
    heads: int


SMALL = Shape(384, 12, 6)
BASE = Shape(768, 12, 12)


def patch_size(image_size: int) -> int:
    """Side of the patches in pixels: 4 for small images, 8 from 64 px, 16 from 128 px.

    Example:
        >>> [patch_size(size) for size in (32, 96, 224)]
        [4, 8, 16]
    """
    return 4 if image_size < 64 else 8 if image_size < 128 else 16


def vision_transformer(shape: Shape, classes: int, image_size: int) -> VisionTransformer:
    """torchvision's vision transformer (Dosovitskiy et al., ICLR 2021); its features are the class token, normed.

    Args:
        shape: ViT-S (Touvron et al., ICML 2021) or ViT-B.
        classes: C, the number of logits.
        image_size: A multiple of the patches' side, see `patch_size`.

    Raises:
        ConfigError: The image is not cut into whole patches.

    Example:
        >>> vision_transformer(Shape(32, 1, 2), 10, 32).seq_length
        65
    """
    patch = patch_size(image_size)
    if image_size % patch:
        raise ConfigError(
            f"a vision transformer cuts images into patches of {patch} px, and {image_size} px is no multiple of it. "
            f"Use --image-size {image_size // patch * patch or patch} or another --arch."
        )
    return VisionTransformer(
        image_size=image_size,
        patch_size=patch,
        num_layers=shape.blocks,
        num_heads=shape.heads,
        hidden_dim=shape.width,
        mlp_dim=4 * shape.width,
        num_classes=classes,
    )
