"""Losses of D-ST: contrast with labels where they are trusted, and a cross-entropy that also pushes away."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

Positives = Literal["strict", "published", "own", "labels"]
BASE_TEMPERATURE = 0.07


def semi_supervised_contrast(
    first: Tensor, second: Tensor, labels: Tensor, clean: Tensor, *, temperature: float, positives: Positives = "strict"
) -> Tensor:
    """Contrastive loss with the labels of clean images (SS-CTL; Chen, Wu, Wang, NeurIPS 2022).

    Each of the 2N views is an anchor, and all the others stand in its denominator: ``-mean_p log softmax(z_a z_p / T)``
    over its positives p, times T / 0.07 as in supervised contrastive learning (Khosla et al., NeurIPS 2020). The other
    view of the same image is always a positive.

    Args:
        first: (N, D) of one view of each image; scaled to length 1 here.
        second: (N, D) of another view of the same images.
        labels: (N,) observed labels.
        clean: (N,) bool, whose labels are trusted.
        temperature: Divides the cosines; above 0.
        positives: Further positives. ``strict``: of a clean image, clean images with its label. ``published``: of a
            clean image, all images with its label, poisoned ones too. ``own``: none. ``labels``: of every image, all
            with its label.

    Returns:
        Scalar, 0 or more.

    Example:
        >>> images, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
        >>> clean = torch.tensor([True, True, True, False])
        >>> loss = semi_supervised_contrast(images, images, labels, clean, temperature=0.1)
        >>> alone = semi_supervised_contrast(images, images, labels, clean, temperature=0.1, positives="own")
        >>> bool(loss > alone)
        True
    """
    count = len(first)
    views = normalize(torch.cat([first, second]).float())  # exponents of 1 / T are too much for half precision
    itself = torch.eye(2 * count, dtype=torch.bool, device=views.device)
    logits = (views @ views.T / temperature).masked_fill(itself, -torch.inf)
    wanted = positive_pairs(labels, clean, positives).repeat(2, 2) & ~itself
    chances = logits.log_softmax(dim=1).masked_fill(~wanted, 0.0)
    return -(chances.sum(dim=1) / wanted.sum(dim=1)).mean() * temperature / BASE_TEMPERATURE


def positive_pairs(labels: Tensor, clean: Tensor, positives: Positives) -> Tensor:
    """(N, N) bool: whether image j is a positive of anchor i; each is one of itself.

    Args:
        labels: (N,).
        clean: (N,) bool.
        positives: See `semi_supervised_contrast`.

    Example:
        >>> labels, clean = torch.tensor([0, 0]), torch.tensor([True, False])
        >>> positive_pairs(labels, clean, "strict").tolist(), positive_pairs(labels, clean, "published").tolist()
        ([[True, False], [False, True]], [[True, True], [False, True]])
    """
    same = labels[:, None] == labels
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    trusted = {
        "strict": clean[:, None] & clean,
        "published": clean[:, None].expand_as(same),
        "own": itself,
        "labels": torch.ones_like(same),
    }[positives]
    return itself | (same & trusted)


def mixed_cross_entropy(logits: Tensor, labels: Tensor, poisoned: Tensor, *, weight: float) -> Tensor:
    """Mean cross-entropy of the images that are not poisoned, minus `weight` times that of the poisoned ones.

    D-ST's second stage (Chen, Wu, Wang, NeurIPS 2022). A group without an image counts 0, where the mean of nothing
    would be NaN. The negative part has no lower bound: `weight` must be small.

    Args:
        logits: (N, C).
        labels: (N,) observed.
        poisoned: (N,) bool.
        weight: 0 or more.

    Returns:
        Scalar.

    Example:
        >>> logits, labels = torch.zeros(2, 2), torch.tensor([0, 0])
        >>> mixed_cross_entropy(logits, labels, torch.tensor([False, True]), weight=0.5)
        tensor(0.3466)
    """
    losses = cross_entropy(logits.float(), labels, reduction="none")
    kept = (losses * ~poisoned).sum() / (~poisoned).sum().clamp_min(1)
    pushed = (losses * poisoned).sum() / poisoned.sum().clamp_min(1)
    return kept - weight * pushed
