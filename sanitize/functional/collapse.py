"""Feature collapse: how alike one change of the input makes the features of different images, and the search for it.

A backdoor sends many images to one place, whatever its trigger looks like; so does the change that is searched for.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from sanitize.errors import TrainingError
from sanitize.functional.similarity import mean_similarity

Family = Literal["perturbation", "pattern"]
FAMILIES: tuple[Family, ...] = get_args(Family)
FRESH_BOUND, FRESH_STARTS = 0.05, 2


def centred_collapse(features: Tensor, centre: Tensor) -> Tensor:
    """Mean centred cosine over all pairs of different rows, in O(N D).

    With unit vectors ``u_i`` of ``a_i - centre`` it is ``(|sum u_i|^2 - sum |u_i|^2) / (N (N - 1))``.

    Args:
        features: (N, D), N at least 2.
        centre: (D,) or (1, D): the mean feature of clean images.

    Returns:
        Scalar in [-1 / (N - 1), 1]: about 0 for different images, 1 when all features lie in one direction.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
        >>> centre = torch.zeros(2)
        >>> round(float(centred_collapse(features, centre)), 2), float(centred_collapse(features + 9, centre)) > 0.9
        (-0.33, True)
    """
    units = F.normalize(features - centre, dim=1)
    count = len(units)
    return (units.sum(dim=0).square().sum() - units.square().sum()) / (count * (count - 1))


class Change(nn.Module):
    """One change of the input, the same for all images; its parameters are what a search optimises."""

    step_size: float
    """Learning rate of Adam."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Changed images.

        Args:
            images: (N, 3, H, W) in [0, 1].

        Returns:
            (N, 3, H, W) in [0, 1].
        """

    @abstractmethod
    def penalty(self) -> Tensor:
        """What keeps the change small: a scalar in [0, 1] that the search subtracts."""

    @abstractmethod
    def project_(self) -> None:
        """Back into the allowed set, after a step."""

    @abstractmethod
    def pictures(self) -> dict[str, Tensor]:
        """What it looks like: name -> (3, H, W) in [0, 1]."""


class Perturbation(Change):
    """Adds one picture of small values: ``clamp(x + delta)``, ``|delta| <= bound``.

    Args:
        image_size: Height and width.
        bound: Largest change of a pixel, in (0, 1].
        generator: Of the start, uniform within a quarter of the bound.
    """

    def __init__(self, image_size: int, bound: float, generator: torch.Generator) -> None:
        super().__init__()
        start = 2 * torch.rand(1, 3, image_size, image_size, generator=generator) - 1
        self.delta = nn.Parameter(start * bound / 4)
        self.bound = bound
        self.step_size = bound / 5

    def forward(self, images: Tensor) -> Tensor:
        """See `Change`."""
        return (images + self.delta).clamp(0, 1)

    def penalty(self) -> Tensor:
        """0: the bound keeps it small."""
        return self.delta.new_zeros(())

    @torch.no_grad()
    def project_(self) -> None:
        """Into the bound."""
        self.delta.clamp_(-self.bound, self.bound)

    def pictures(self) -> dict[str, Tensor]:
        """One picture: grey is 0, the bound is black and white."""
        return {"perturbation": (self.delta.detach()[0] / (2 * self.bound) + 0.5).clamp(0, 1)}


class Pattern(Change):
    """Lays one picture over the image: ``(1 - m) x + m p``, mask m and picture p through sigmoids.

    Args:
        image_size: Height and width.
        generator: Of the start: normal, so that masks begin around a half.
    """

    step_size = 0.3

    def __init__(self, image_size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.raw_mask = nn.Parameter(torch.randn(1, 1, image_size, image_size, generator=generator))
        self.raw_picture = nn.Parameter(torch.randn(1, 3, image_size, image_size, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        """See `Change`."""
        mask = self.raw_mask.sigmoid()
        return (1 - mask) * images + mask * self.raw_picture.sigmoid()

    def penalty(self) -> Tensor:
        """The share of the image that is covered."""
        return self.raw_mask.sigmoid().mean()

    def project_(self) -> None:
        """Sigmoids keep mask and picture in range."""

    @torch.no_grad()
    def pictures(self) -> dict[str, Tensor]:
        """The pattern on grey, and its mask."""
        grey = torch.full_like(self.raw_picture, 0.5)
        return {"pattern": self(grey)[0], "mask": self.raw_mask.sigmoid()[0].expand(3, -1, -1).clone()}


def new_change(family: Family, image_size: int, bound: float, generator: torch.Generator) -> Change:
    """A change from which a search sets out; `bound` is for perturbations only."""
    return Perturbation(image_size, bound, generator) if family == "perturbation" else Pattern(image_size, generator)


@dataclass(frozen=True)
class Found:
    """What a search came back with.

    Args:
        change: The change; its parameters need no gradient any more.
        collapse: That it reaches on a batch that no step was made for.
        penalty: Of the change: the share of the image that a pattern covers, 0 for a perturbation.
    """

    change: Change
    collapse: float
    penalty: float


def search(
    network: Callable[[Tensor], Tensor],
    pixels: Callable[[Tensor], Tensor],
    images: int,
    start: Callable[[torch.Generator], Change],
    centre: Tensor,
    generator: torch.Generator,
    *,
    steps: int = 15,
    batch_size: int = 64,
) -> Found:
    """Search a change that makes the network's outputs for different images collapse: Adam on penalty minus collapse.

    No gradient reaches the network's parameters. A search that finds nothing is a result: its collapse is then near
    that of unchanged images, 0.

    Args:
        network: Images (B, 3, H, W) -> (B, D); in eval mode.
        pixels: Indices (B,) -> images in [0, 1].
        images: How many there are, at least 2.
        start: Makes a change from a generator.
        centre: (D,) mean output for clean images; the change is put on its device.
        generator: Of starts and batches.
        steps: Of Adam.
        batch_size: Images a step.

    Raises:
        TrainingError: Two starts in a row led to NaN.
    """

    def collapse(change: Change) -> Tensor:
        batch = torch.randperm(images, generator=generator)[:batch_size]
        return centred_collapse(network(change(pixels(batch))).float(), centre)

    for _ in range(2):
        change = start(generator).to(centre.device)
        parameters = list(change.parameters())
        adam = Adam(parameters, lr=change.step_size)
        for _ in range(steps):
            loss = change.penalty() - collapse(change)
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient
            adam.step()
            change.project_()
        adam.zero_grad()
        change.requires_grad_(False)
        with torch.no_grad():
            found = Found(change, float(collapse(change)), float(change.penalty()))
        # a NaN gradient at any step stays in Adam's averages, and so in the parameters
        if math.isfinite(found.collapse) and all(bool(value.isfinite().all()) for value in parameters):
            return found
    raise TrainingError(
        "the search for a collapse of features became NaN twice, from two starts: the network gives NaN for slightly "
        "changed images. Check --normalization, or use --precision 32-true."
    )


def fresh_search(
    network: Callable[[Tensor], Tensor],
    pixels: Callable[[Tensor], Tensor],
    images: int,
    family: Family,
    image_size: int,
    centre: Tensor,
    generator: torch.Generator,
    *,
    steps: int = 40,
    batch_size: int = 64,
) -> Found:
    """How easily a network's outputs collapse: the best of two longer searches, to compare networks by.

    Perturbations are bounded by 0.05, where clean encoders hardly collapse (at 0.15 they do, too); for patterns, it is
    their size that tells clean and backdoored encoders apart.

    Args:
        network: See `search`.
        pixels: See `search`.
        images: See `search`.
        family: What is searched.
        image_size: Height and width.
        centre: (D,) mean output of this network for clean images.
        generator: Of starts and batches; the same for all networks that are compared.
        steps: Of Adam.
        batch_size: Images a step.

    Raises:
        TrainingError: See `search`.
    """

    def start(generator: torch.Generator) -> Change:
        return new_change(family, image_size, FRESH_BOUND, generator)

    found = [
        search(network, pixels, images, start, centre, generator, steps=steps, batch_size=batch_size)
        for _ in range(FRESH_STARTS)
    ]
    return max(found, key=lambda one: one.collapse - one.penalty)


def unlearning_losses(
    anchor: Tensor, kept: Tensor, changed: Tensor, *, consistency_weight: float, unlearn_weight: float
) -> dict[str, Tensor]:
    """What teaches a network to ignore a change: clean and changed images look as clean ones did.

    Args:
        anchor: f0(x), outputs (N, D) of the frozen suspect for clean images.
        kept: f(x), of the network that is trained.
        changed: f(t(x)), of the same images, changed.
        consistency_weight: Of the clean images.
        unlearn_weight: u, of the changed ones.

    Returns:
        ``consistency`` and ``restoration``, each in [-1, 1], and their weighted sum ``loss``.
    """
    consistency = -mean_similarity(anchor, kept)
    restoration = -mean_similarity(anchor, changed)
    return {
        "loss": consistency_weight * consistency + unlearn_weight * restoration,
        "consistency": consistency,
        "restoration": restoration,
    }
