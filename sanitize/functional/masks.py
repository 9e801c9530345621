"""Masks that hide parts of an image in turn, and the window in which an attention map is strongest."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

MaskKind = Literal["grid", "random", "interval", "blocks"]
"""Windows at the points of a grid or at random places (both cyclic), checkerboards, or random blocks."""


def cyclic_windows(corners: Tensor, side: int, window: int) -> Tensor:
    """One square window a mask; what leaves the image at one edge comes in at the opposite one.

    Args:
        corners: (M, 2) int64, top row and left column, in [0, side).
        side: Height and width of the image in pixels.
        window: Side of the window in pixels, at most `side`.

    Returns:
        (M, side, side) bool, True inside the window; each mask has window * window such pixels.

    Example:
        >>> cyclic_windows(torch.tensor([[3, 1]]), 4, 2)[0].int().tolist()
        [[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0]]
    """
    places = torch.arange(side, device=corners.device)
    rows, columns = ((places - corner[:, None]) % side < window for corner in corners.unbind(dim=1))
    return rows[:, :, None] & columns[:, None, :]


def masks_for(kind: MaskKind, side: int, window: int, *, count: int, stride: int, generator: torch.Generator) -> Tensor:
    """A set of masks whose True pixels are hidden.

    Args:
        kind: ``grid``: `cyclic_windows` at all multiples of `stride`; ``random``: at uniform places (full coverage);
            ``interval``: checkerboards of blocks of a third of the window, shifted at random (0-1-interval);
            ``blocks``: such blocks, each hidden with probability ``(window / side) ** 2``.
        side: Height and width of the image in pixels.
        window: Side of the windows in pixels.
        count: Number of masks, M; a grid has ``ceil(side / stride) ** 2``.
        stride: Of the grid, in pixels.
        generator: Of places and blocks; not used by a grid.

    Returns:
        (M, side, side) bool.
    """
    if kind == "grid":
        starts = torch.arange(0, side, stride)
        return cyclic_windows(torch.cartesian_prod(starts, starts), side, window)
    if kind == "random":
        return cyclic_windows(torch.randint(side, (count, 2), generator=generator), side, window)
    block = max(1, window // 3)
    if kind == "blocks":
        blocks = -(-side // block)
        hidden = torch.rand((count, blocks, blocks), generator=generator) < (window / side) ** 2
        return hidden.repeat_interleave(block, 1).repeat_interleave(block, 2)[:, :side, :side]
    shifts = torch.randint(2 * block, (count, 2), generator=generator)
    odd = (torch.arange(side) + shifts[:, :, None]) // block % 2 == 1
    return odd[:, 0, :, None] ^ odd[:, 1, None, :]


def cluster_activation(labels: Tensor, distances: Tensor, own: Tensor, masks: Tensor, count: int) -> Tensor:
    """Attention maps by cluster activation masking (PoisonCAM, equations 2 and 3).

    A mask counts 1 where the masked image leaves the cluster that most masked images of it fall into (on a tie, the
    cluster of the unmasked image), and else the distance to the centre, scaled to [0, 1] over the image's masks.

    Differs from the paper: the sum of the masks is divided by how many masks cover a pixel, so that a small set that
    covers some pixels more often does not favour them.

    Args:
        labels: (N, M) int64, cluster of image n under mask m.
        distances: (N, M) distance to the centre of that cluster.
        own: (N,) int64, cluster of the unmasked image.
        masks: (M, H, W) bool, True where an image was hidden.
        count: Number of clusters.

    Returns:
        (N, H, W) float32 in [0, 1].
    """
    votes = torch.zeros((len(labels), count), device=labels.device)
    votes.scatter_add_(1, labels, torch.ones_like(labels, dtype=votes.dtype))
    votes.scatter_add_(1, own[:, None], votes.new_full((len(own), 1), 0.5))
    usual = votes.argmax(dim=1, keepdim=True)
    lowest, highest = distances.aminmax(dim=1, keepdim=True)
    scaled = (distances - lowest) / (highest - lowest).clamp(min=torch.finfo(distances.dtype).tiny)
    outlier = torch.where(labels == usual, scaled, torch.ones_like(scaled))
    hidden = masks.flatten(1).to(outlier.dtype)
    return ((outlier @ hidden) / hidden.sum(dim=0).clamp(min=1)).view(-1, *masks.shape[1:])


def best_window(maps: Tensor, window: int) -> Tensor:
    """The window with the largest sum of a map; all places inside the image, the first one of equal ones.

    Args:
        maps: (N, H, W).
        window: Side in pixels, at most H and W.

    Returns:
        (N, 2) int64, top row and left column.

    Example:
        >>> maps = torch.zeros(1, 6, 6)
        >>> maps[0, 2:4, 3:5] = 1
        >>> best_window(maps, 2).tolist()
        [[2, 3]]
    """
    sums = functional.avg_pool2d(maps[:, None].float(), window, stride=1)[:, 0]
    place = sums.flatten(1).argmax(dim=1)
    return torch.stack([place // sums.shape[2], place % sums.shape[2]], dim=1)


def cut(images: Tensor, corners: Tensor, window: int) -> Tensor:
    """The windows of images.

    Args:
        images: (N, C, H, W).
        corners: (N, 2) int64, top row and left column.
        window: Side in pixels.

    Returns:
        (N, C, window, window).
    """
    reach = torch.arange(window, device=images.device)
    rows, columns = (corner[:, None] + reach for corner in corners.to(images.device).unbind(dim=1))
    number = torch.arange(len(images), device=images.device)[:, None, None]
    return images[number, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
