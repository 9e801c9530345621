"""Feature collapse: how alike one change of the input makes the features of different images, and the search for it.

A backdoor sends many images to one place, whatever its trigger looks like; so does the change that is searched for. A
network without a backdoor has such weak spots, too. A single search mostly ends in one of those: many are therefore
started side by side with few images each, and the worse ones are given up early.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from sanitize.errors import TrainingError
from sanitize.functional.similarity import mean_similarity

Family = Literal["perturbation", "patch"]
FAMILIES: tuple[Family, ...] = get_args(Family)
BOUND, STRONGEST, SMALL_PATCH, LARGE_PATCH = 0.05, 3, 1 / 8, 1 / 4
HALVINGS, SURVIVORS = 3, 4  # one in four goes on


def centred_collapse(features: Tensor, centre: Tensor) -> Tensor:
    """Mean centred cosine over all pairs of different rows, in O(N D).

    With unit vectors ``u_i`` of ``a_i - centre`` it is ``(|sum u_i|^2 - sum |u_i|^2) / (N (N - 1))``.

    Args:
        features: (..., N, D), N at least 2.
        centre: (D,) or (1, D): the mean feature of clean images.

    Returns:
        (...) in [-1 / (N - 1), 1]: about 0 for different images, 1 when all features lie in one direction.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
        >>> centre = torch.zeros(2)
        >>> round(float(centred_collapse(features, centre)), 2), float(centred_collapse(features + 9, centre)) > 0.9
        (-0.33, True)
    """
    units = F.normalize(features - centre, dim=-1)
    count = units.shape[-2]
    return (units.sum(dim=-2).square().sum(dim=-1) - units.square().sum(dim=(-2, -1))) / (count * (count - 1))


class Changes(nn.Module):
    """Universal changes of the input, searched side by side; what a search comes back with is one of them."""

    step_size: float
    """Learning rate of Adam."""

    first_images: int
    """A candidate, as a search begins; hidden perturbations need more of them than patches, of which there are more."""

    values: nn.Parameter
    """(P, 3, H, W): what is searched, one row a candidate."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Every candidate on every image.

        Args:
            images: (N, 3, H, W) in [0, 1].

        Returns:
            (P, N, 3, H, W) in [0, 1].
        """

    @abstractmethod
    def select(self, which: Tensor) -> Self:
        """Some of the candidates, copied; `which` are their indices."""

    @abstractmethod
    def joined(self, others: Self) -> Self:
        """These candidates and, after them, others of the same kind; copied."""

    @abstractmethod
    def project_(self) -> None:
        """Back into the allowed set, after a step."""

    @abstractmethod
    def varied(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The first candidate, on each image in another form: a search finds one of those that a trigger may have.

        Args:
            images: (N, 3, H, W) in [0, 1].
            generator: Of the forms.

        Returns:
            (N, 3, H, W) in [0, 1].
        """

    @abstractmethod
    def pictures(self) -> dict[str, Tensor]:
        """What the first candidate looks like: name -> (3, H, W) in [0, 1]."""


class Perturbations(Changes):
    """Adds one picture of small values: ``clamp(x + delta)``, ``|delta| <= bound``.

    Args:
        values: (P, 3, H, W) where the search sets out.
        bound: Largest change of a pixel, in (0, 1].
    """

    first_images = 16

    def __init__(self, values: Tensor, bound: float) -> None:
        super().__init__()
        self.values = nn.Parameter(values)
        self.bound = bound
        self.step_size = bound / 5

    @classmethod
    def start(cls, count: int, image_size: int, bound: float, generator: torch.Generator) -> Perturbations:
        """Candidates that are uniform within a quarter of the bound."""
        uniform = 2 * torch.rand(count, 3, image_size, image_size, generator=generator) - 1
        return cls(uniform * bound / 4, bound)

    def forward(self, images: Tensor) -> Tensor:
        """See `Changes`."""
        return (images + self.values[:, None]).clamp(0, 1)

    def select(self, which: Tensor) -> Self:
        """See `Changes`."""
        return type(self)(self.values.detach()[which].clone(), self.bound)

    def joined(self, others: Self) -> Self:
        """See `Changes`."""
        return type(self)(torch.cat([self.values.detach(), others.values.detach()]), self.bound)

    @torch.no_grad()
    def project_(self) -> None:
        """Into the bound."""
        self.values.clamp_(-self.bound, self.bound)

    def varied(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Up to three times as strong: a bound that clean networks bear is less than a trigger may be."""
        strength = 1 + (STRONGEST - 1) * torch.rand(len(images), 1, 1, 1, generator=generator)
        return torch.clamp(images + strength.to(images) * self.values[:1], 0, 1)

    def pictures(self) -> dict[str, Tensor]:
        """One picture: grey is 0, the bound is black and white."""
        return {"perturbation": (self.values.detach()[0] / (2 * self.bound) + 0.5).clamp(0, 1)}


class Patches(Changes):
    """Lays a square over the image, every candidate at a place of its own; its colours go through a sigmoid.

    Args:
        values: (P, 3, size, size) where the search sets out.
        places: (P, 2) row and column of the upper left corners.
        image_size: Height and width of the images.
    """

    step_size = 0.5
    first_images = 8
    places: Tensor

    def __init__(self, values: Tensor, places: Tensor, image_size: int) -> None:
        super().__init__()
        self.values = nn.Parameter(values)
        self.register_buffer("places", places)
        self.image_size = image_size

    @classmethod
    def start(cls, image_size: int, share: float, generator: torch.Generator) -> Patches:
        """Random colours at the places that tile the image; the side is a share of the image's."""
        size = max(1, round(image_size * share))
        along = torch.tensor(sorted({min(begin, image_size - size) for begin in range(0, image_size, size)}))
        places = torch.cartesian_prod(along, along)
        return cls(torch.randn(len(places), 3, size, size, generator=generator), places, image_size)

    def forward(self, images: Tensor) -> Tensor:
        """See `Changes`."""
        count, number = len(self.values), len(images)
        shown = images.repeat(count, 1, 1, 1)
        colours = self.values.repeat_interleave(number, dim=0)
        laid = _laid(shown, colours, self.places.repeat_interleave(number, dim=0))
        return laid.view(count, number, *images.shape[1:])

    def select(self, which: Tensor) -> Self:
        """See `Changes`."""
        return type(self)(self.values.detach()[which].clone(), self.places[which], self.image_size)

    def joined(self, others: Self) -> Self:
        """See `Changes`."""
        values = torch.cat([self.values.detach(), others.values.detach()])
        return type(self)(values, torch.cat([self.places, others.places]), self.image_size)

    def project_(self) -> None:
        """The sigmoid keeps colours in range."""

    def varied(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """At a random place."""
        room = self.image_size - self.values.shape[-1] + 1
        places = (torch.rand(len(images), 2, generator=generator) * room).long().to(images.device)
        return _laid(images, self.values[:1].expand(len(images), -1, -1, -1), places)

    @torch.no_grad()
    def pictures(self) -> dict[str, Tensor]:
        """The patch at its place on grey."""
        return {"patch": self(torch.full((1, 3, self.image_size, self.image_size), 0.5).to(self.values))[0, 0]}


def _laid(images: Tensor, colours: Tensor, places: Tensor) -> Tensor:
    """Square i (3, size, size), before the sigmoid, over image i at place i (2,)."""
    along = torch.arange(colours.shape[-1], device=images.device)
    number = torch.arange(len(images), device=images.device)[:, None, None]
    rows, columns = (places[:, :1] + along)[:, :, None], (places[:, 1:] + along)[:, None, :]
    shown = images.permute(0, 2, 3, 1).index_put(
        (number, rows, columns), colours.sigmoid().permute(0, 2, 3, 1).to(images.dtype)
    )
    return shown.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Found:
    """What a search came back with.

    Args:
        changes: One candidate; it needs no gradient any more.
        collapse: That it reaches on a batch that no step was made for.
    """

    changes: Changes
    collapse: float


def search(
    network: Callable[[Tensor], Tensor],
    pixels: Callable[[Tensor], Tensor],
    images: int,
    start: Callable[[torch.Generator], Changes],
    centre: Tensor,
    generator: torch.Generator,
    *,
    steps: int = 8,
    batch_size: int = 64,
) -> Found:
    """Search a change that makes the network's outputs for different images collapse: Adam, with successive halving.

    All candidates are improved side by side for `steps` steps; the best quarter goes on with twice as many images a
    candidate, and its best quarter once more; then one is left. No gradient reaches the network's parameters. A search
    that finds nothing is a result: its collapse is then near that of unchanged images, 0.

    Args:
        network: Images (B, 3, H, W) -> (B, D); in eval mode.
        pixels: Indices (B,) -> images in [0, 1].
        images: How many there are, at least 2.
        start: Makes candidates from a generator.
        centre: (D,) mean output for clean images; the candidates are put on its device.
        generator: Of starts and batches.
        steps: Of Adam, in each of the three rounds.
        batch_size: Images of the last measurement; eight times as many are in memory at once.

    Raises:
        TrainingError: Two starts in a row led to NaN.
    """

    for _ in range(2):
        changes = start(generator).to(centre.device)
        per_candidate = min(changes.first_images, images)
        for halving in range(HALVINGS):
            scores = _improve(changes, network, pixels, images, centre, generator, steps, per_candidate, 8 * batch_size)
            left = 1 if halving == HALVINGS - 1 else max(1, len(scores) // SURVIVORS)
            changes = changes.select(scores.argsort(descending=True, stable=True)[:left])
            per_candidate = min(2 * per_candidate, images)
        changes.requires_grad_(False)
        drawn = torch.randperm(images, generator=generator)[:batch_size]
        with torch.no_grad():
            found = Found(changes, float(_collapses(changes, network, pixels(drawn), centre)))
        # a NaN gradient at any step stays in Adam's averages, and so in the values
        if math.isfinite(found.collapse) and bool(changes.values.isfinite().all()):
            return found
    raise TrainingError(
        "the search for a collapse of features became NaN twice, from two starts: the network gives NaN for slightly "
        "changed images. Check --normalization, or use --precision 32-true."
    )


def _improve(
    changes: Changes,
    network: Callable[[Tensor], Tensor],
    pixels: Callable[[Tensor], Tensor],
    images: int,
    centre: Tensor,
    generator: torch.Generator,
    steps: int,
    per_candidate: int,
    together: int,
) -> Tensor:
    """Some steps of Adam on all candidates; (P,) their mean collapse in the second half of the steps."""
    adam = Adam([changes.values], lr=changes.step_size)
    scores = torch.zeros(len(changes.values), device=centre.device)
    groups = torch.split(torch.arange(len(scores)), max(1, together // per_candidate))
    for step in range(steps):
        shown = pixels(torch.randperm(images, generator=generator)[:per_candidate])
        gradients: list[Tensor] = []
        reached: list[Tensor] = []
        for group in groups:
            members = changes.select(group)
            collapses = _collapses(members, network, shown, centre)
            gradients += torch.autograd.grad(-collapses.sum(), [members.values])
            reached.append(collapses.detach())
        changes.values.grad = torch.cat(gradients)
        adam.step()
        changes.project_()
        if step >= steps // 2:
            scores += torch.cat(reached)
    return scores.nan_to_num(nan=-math.inf)


def _collapses(changes: Changes, network: Callable[[Tensor], Tensor], shown: Tensor, centre: Tensor) -> Tensor:
    """(P,): of each candidate on these images."""
    features = network(changes(shown).flatten(0, 1)).float()
    return centred_collapse(features.view(-1, len(shown), features.shape[-1]), centre)


def fresh_search(
    network: Callable[[Tensor], Tensor],
    pixels: Callable[[Tensor], Tensor],
    images: int,
    family: Family,
    image_size: int,
    centre: Tensor,
    generator: torch.Generator,
    *,
    starts: int = 8,
    steps: int = 12,
    batch_size: int = 64,
) -> Found:
    """How easily a network's outputs collapse, to compare networks by: longer searches, for small changes only.

    Clean networks collapse, too, for large changes: perturbations are bounded by 0.05 a pixel, patches have an eighth
    of the image's side.

    Args:
        network: See `search`.
        pixels: See `search`.
        images: See `search`.
        family: What is searched.
        image_size: Height and width.
        centre: (D,) mean output of this network for clean images.
        generator: Of starts and batches; the same for all networks that are compared.
        starts: Candidates of perturbations; those of patches tile the image.
        steps: See `search`.
        batch_size: See `search`.

    Raises:
        TrainingError: See `search`.
    """

    def start(drawn: torch.Generator) -> Changes:
        if family == "perturbation":
            return Perturbations.start(starts, image_size, BOUND, drawn)
        return Patches.start(image_size, SMALL_PATCH, drawn)

    return search(network, pixels, images, start, centre, generator, steps=steps, batch_size=batch_size)


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
