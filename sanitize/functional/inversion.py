"""Trigger inversion (Wang et al., S&P 2019, section V-B): masks and patterns that are made small while they work."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Controller:
    """How the weight of a mask's size follows success.

    Args:
        start: Weight of the first step; 0 seeks any trigger first.
        first: Weight after the first run of successes, where it is 0.
        up: Factor after a run of successes.
        down: Divisor after a run of failures.
        patience: Steps of a run.
        largest: Upper bound of the weight.
    """

    start: float
    first: float
    up: float
    down: float
    patience: int
    largest: float = 1e6


class Triggers(nn.Module):
    """Masks m and patterns p, one pair for each target, pasted as ``(1 - m) x + m p``, and the smallest that worked.

    Everything is batched over the T targets, and all state is in the state dict, so that a run can be resumed.

    Args:
        count: T.
        image_size: Height and width.
        controller: Of the weights.
        generator: Of the random start.
    """

    def __init__(self, count: int, image_size: int, controller: Controller, generator: torch.Generator) -> None:
        super().__init__()
        self.controller = controller
        shape = (count, 1, image_size, image_size)
        self.mask_logits = nn.Parameter(torch.randn(shape, generator=generator))
        self.pattern_logits = nn.Parameter(torch.randn(count, 3, *shape[2:], generator=generator))
        self.register_buffer("weights", torch.full((count,), controller.start))
        self.register_buffer("runs", torch.zeros(count))
        self.register_buffer("best_sizes", torch.full((count,), torch.inf))
        self.register_buffer("best_masks", torch.zeros(shape))
        self.register_buffer("best_patterns", torch.zeros(count, 3, *shape[2:]))

    weights: Tensor
    """(T,) weight of each mask's size in the loss."""
    runs: Tensor
    """(T,) successes in a row, or minus the failures in a row."""
    best_sizes: Tensor
    """(T,) size of the smallest mask that worked; infinite where none did."""
    best_masks: Tensor
    best_patterns: Tensor

    @property
    def masks(self) -> Tensor:
        """(T, 1, H, W) in [0, 1]."""
        return torch.tanh(self.mask_logits) / 2 + 0.5

    @property
    def patterns(self) -> Tensor:
        """(T, 3, H, W) in [0, 1]."""
        return torch.tanh(self.pattern_logits) / 2 + 0.5

    def sizes(self) -> Tensor:
        """Mean of each mask (T,), in [0, 1]: the share of the image that it covers."""
        return self.masks.mean(dim=(1, 2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Each trigger on each image: (B, 3, H, W) to (T, B, 3, H, W)."""
        return paste(self.masks, self.patterns, images)

    @torch.no_grad()
    def record(self, worked: Tensor) -> None:
        """Keep what is smaller than before, and adjust the weights; before the optimizer's step.

        Args:
            worked: (T,) bool, whether each trigger reached its target on this batch.
        """
        sizes, control = self.sizes(), self.controller
        better = worked & (sizes < self.best_sizes)
        self.best_sizes = torch.where(better, sizes, self.best_sizes)
        self.best_masks = torch.where(better[:, None, None, None], self.masks, self.best_masks)
        self.best_patterns = torch.where(better[:, None, None, None], self.patterns, self.best_patterns)
        self.runs = torch.where(worked, self.runs.clamp(min=0) + 1, self.runs.clamp(max=0) - 1)
        raised = torch.where(self.weights > 0, self.weights * control.up, torch.full_like(self.weights, control.first))
        grows, falls = self.runs >= control.patience, self.runs <= -control.patience
        weights = torch.where(grows, raised, torch.where(falls, self.weights / control.down, self.weights))
        self.weights = weights.clamp(max=control.largest)
        self.runs = torch.where(grows | falls, torch.zeros_like(self.runs), self.runs)


def paste(masks: Tensor, patterns: Tensor, images: Tensor) -> Tensor:
    """``(1 - m) x + m p``: masks (T, 1, H, W), patterns (T, 3, H, W), images (B, 3, H, W) to (T, B, 3, H, W)."""
    masks, patterns = masks[:, None], patterns[:, None]
    return (1 - masks) * images[None] + masks * patterns


def off_diagonal_similarity(features: Tensor) -> Tensor:
    """Mean cosine similarity of different images: (T, B, D) to (T,), in [-1, 1].

    Example:
        >>> off_diagonal_similarity(torch.eye(2)[None])
        tensor([0.])
    """
    normalised = nn.functional.normalize(features, dim=2)
    count = features.shape[1]
    everything = normalised.sum(dim=1).square().sum(dim=1)
    own = normalised.square().sum(dim=(1, 2))
    return (everything - own) / (count * (count - 1))
