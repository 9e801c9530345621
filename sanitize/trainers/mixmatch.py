"""Fine-tuning with the labels of trusted images only: MixMatch, and the split into trusted and other images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from sanitize.data import DeviceImages
from sanitize.data.crops import PaddedCrops
from sanitize.functional.mixmatch import mixed, mixing_share, sharpened
from sanitize.trainers.base import Filtering


def lowest(losses: Tensor, labels: Tensor, keep_ratio: float, *, per_class: bool) -> Tensor:
    """The share of images with the smallest losses; of equal ones the first.

    Args:
        losses: (N,).
        labels: (N,) int64.
        keep_ratio: Share that is kept, rounded down.
        per_class: Whether it is a share of each class, instead of all images.

    Returns:
        (N,) bool.

    Example:
        >>> losses, labels = torch.tensor([0.1, 0.2, 0.8, 0.9]), torch.tensor([0, 0, 1, 1])
        >>> lowest(losses, labels, 0.5, per_class=False).tolist(), lowest(losses, labels, 0.5, per_class=True).tolist()
        ([True, True, False, False], [True, False, True, False])
    """
    kept = torch.zeros(len(losses), dtype=torch.bool)
    groups = [labels == label for label in torch.unique(labels)] if per_class else [torch.ones_like(kept)]
    for group in groups:
        rows = torch.nonzero(group).flatten()
        order = losses[rows].argsort(stable=True)
        kept[rows[order[: math.floor(keep_ratio * len(rows))]]] = True
    return kept


class Trust:
    """Which images are trusted while the fine-tuning runs; a companion of its stage.

    Args:
        first: The decision that it begins with.
        decide: Looks at the network and decides anew, before each epoch but the first; None to stay with the first.
        weight: Of the unlabelled part in the last epoch; it rises linearly, from a part of it in the first.
        epochs: Of the stage.
    """

    def __init__(
        self, first: Filtering, decide: Callable[[nn.Module], Filtering] | None, *, weight: float, epochs: int
    ) -> None:
        self.first = first
        self.now = first
        self.epoch = 0
        self._decide = decide
        self._full_weight = weight
        self._epochs = epochs

    @property
    def weight(self) -> float:
        """Of the unlabelled part in the epoch that runs."""
        return self._full_weight * self.epoch / self._epochs

    def before_epoch(self, network: nn.Module, generator: torch.Generator) -> dict[str, float]:
        """See `sanitize.training.Companion`."""
        if self._decide is not None and self.epoch:
            self.now = self._decide(network)
        self.epoch += 1
        return {"still_trusted": float(self.now.trusted[self.first.trusted].float().mean())}

    def state_dict(self) -> dict[str, Any]:
        """See `sanitize.training.Companion`."""
        return {"epoch": self.epoch, "losses": self.now.losses, "trusted": self.now.trusted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `sanitize.training.Companion`."""
        self.epoch = state["epoch"]
        self.now = Filtering(state["losses"], state["trusted"])


@dataclass(frozen=True)
class MixMatch:
    """The loss of one step of MixMatch (Berthelot et al., NeurIPS 2019, equations 2 to 12), as DBD uses it.

    A batch of trusted images with labels, and one of the others in two views: their label is the sharpened mean of the
    network's answers to both. All three are mixed with a permutation of them all. What is mostly trusted images gets
    the labelled loss, the rest a squared error, averaged over classes.

    Differs from the paper:
        - One share for the whole batch, two views, no weight average, as DBD's code.
        - One forward pass of the whole mixed stack, so that batch norm sees all of it; nothing is interleaved.
        - Crops are padded with black.

    Args:
        images: All, on the device, with observed labels.
        classes: C.
        trust: Who is trusted.
        views: Augmentation.
        labelled: Loss of each sample: logits (N, C), targets (N, C) -> (N,).
        temperature: Of the sharpening.
        concentration: Of the Beta distribution of the mixing share.
    """

    images: DeviceImages
    classes: int
    trust: Trust
    views: PaddedCrops
    labelled: Callable[[Tensor, Tensor], Tensor]
    temperature: float
    concentration: float

    def __call__(self, network: nn.Module, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Terms of a step; index i is the trusted image i modulo their number."""
        trusted, others = (torch.nonzero(mask).flatten() for mask in (self.trust.now.trusted, ~self.trust.now.trusted))
        rows, count = trusted[indices % len(trusted)], len(indices)
        unlabelled = self.images.pixels(others[torch.randint(len(others), (count,), generator=generator)])
        seen = torch.cat([self.views(unlabelled, generator), self.views(unlabelled, generator)])
        with torch.no_grad():
            answers = network(seen).float().softmax(dim=1)
        guessed = sharpened((answers[:count] + answers[count:]) / 2, self.temperature)
        assert self.images.labels is not None  # they have observed labels
        known = one_hot(self.images.labels[rows.to(self.images.device)], self.classes).to(guessed)
        stack = torch.cat([self.views(self.images.pixels(rows), generator), seen])
        targets = torch.cat([known, guessed, guessed])
        share = mixing_share(self.concentration, generator)
        order = torch.randperm(len(stack), generator=generator).to(stack.device)
        logits = network(mixed(stack, order, share)).float()
        wanted = mixed(targets, order, share)
        labelled = self.labelled(logits[:count], wanted[:count]).mean()
        unlabelled_loss = (logits[count:].softmax(dim=1) - wanted[count:]).square().mean()
        return {
            "loss": labelled + self.trust.weight * unlabelled_loss,
            "labelled": labelled,
            "unlabelled": unlabelled_loss,
        }
