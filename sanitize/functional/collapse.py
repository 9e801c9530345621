"""Feature collapse: how alike one change of the input makes the features of different images, and the search for it.

A backdoor sends many images to one place, whatever its trigger looks like; so does the change that is searched for. A
network without a backdoor has such weak spots, too. A single search mostly ends in one of those: many are therefore
started side by side with few images each, and the worse ones are given up early.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Adam

from sanitize.errors import TrainingError
from sanitize.functional.changes import BOUND, SMALL_PATCH, Changes, Family, Patches, Perturbations
from sanitize.functional.similarity import mean_similarity

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


def alignment(features: Tensor, centre: Tensor, directions: Tensor) -> Tensor:
    """How far features go in the nearest of known directions: mean cosine of ``a_i - centre`` to it.

    It sees the few images that a weakened trigger still sends off, where collapse, a mean over pairs, is near 0.

    Args:
        features: (..., N, D).
        centre: (D,) or (1, D): the mean feature of clean images.
        directions: (G, D), of unit length, at least one.

    Returns:
        (...) in [-1, 1].

    Example:
        >>> features = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> float(alignment(features, torch.zeros(2), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])))
        0.5
    """
    return (F.normalize(features - centre, dim=-1).mean(dim=-2) @ directions.T).amax(dim=-1)


@dataclass(frozen=True)
class Found:
    """What a search came back with.

    Args:
        changes: One candidate; it needs no gradient any more.
        collapse: That it reaches on a batch that no step was made for.
        direction: (D,), of unit length: where it sends the features of that batch.
        alignment: Of that batch to the directions that it was searched for; None where there were none.
    """

    changes: Changes
    collapse: float
    direction: Tensor
    alignment: float | None = None


def search(
    network: Callable[[Tensor], Tensor],
    pixels: Callable[[Tensor], Tensor],
    images: int,
    start: Callable[[torch.Generator], Changes],
    centre: Tensor,
    generator: torch.Generator,
    *,
    directions: Tensor | None = None,
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
        directions: (G, D): alignment to the nearest of them is searched, instead of collapse.
        steps: Of Adam, in each of the three rounds.
        batch_size: Images of the last measurement; eight times as many are in memory at once.

    Raises:
        TrainingError: Two starts in a row led to NaN.
    """

    def score(features: Tensor) -> Tensor:
        return centred_collapse(features, centre) if directions is None else alignment(features, centre, directions)

    for _ in range(2):
        changes = start(generator).to(centre.device)
        per_candidate = min(changes.first_images, images)
        for halving in range(HALVINGS):
            scores = _improve(changes, network, pixels, images, score, generator, steps, per_candidate, 8 * batch_size)
            left = 1 if halving == HALVINGS - 1 else max(1, len(scores) // SURVIVORS)
            changes = changes.select(scores.argsort(descending=True, stable=True)[:left])
            per_candidate = min(2 * per_candidate, images)
        changes.requires_grad_(False)
        drawn = torch.randperm(images, generator=generator)[:batch_size]
        with torch.no_grad():
            found = measured_change(changes, network, pixels(drawn), centre, directions)
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
    score: Callable[[Tensor], Tensor],
    generator: torch.Generator,
    steps: int,
    per_candidate: int,
    together: int,
) -> Tensor:
    """Some steps of Adam on all candidates; (P,) their mean score in the second half of the steps."""
    adam = Adam([changes.values], lr=changes.step_size)
    scores = torch.zeros(len(changes.values), device=changes.values.device)
    groups = torch.split(torch.arange(len(scores)), max(1, together // per_candidate))
    for step in range(steps):
        shown = pixels(torch.randperm(images, generator=generator)[:per_candidate])
        gradients: list[Tensor] = []
        reached: list[Tensor] = []
        for group in groups:
            members = changes.select(group)
            scored = score(_features(members, network, shown))
            gradients += torch.autograd.grad(-scored.sum(), [members.values])
            reached.append(scored.detach())
        changes.values.grad = torch.cat(gradients)
        adam.step()
        changes.project_()
        if step >= steps // 2:
            scores += torch.cat(reached)
    return scores.nan_to_num(nan=-math.inf)


def _features(changes: Changes, network: Callable[[Tensor], Tensor], shown: Tensor) -> Tensor:
    """(P, N, D): of these images, changed by each candidate."""
    features = network(changes(shown).flatten(0, 1)).float()
    return features.view(-1, len(shown), features.shape[-1])


def measured_change(
    changes: Changes,
    network: Callable[[Tensor], Tensor],
    shown: Tensor,
    centre: Tensor,
    directions: Tensor | None = None,
) -> Found:
    """What the first candidate does to images (N, 3, H, W); see `search` for the other arguments."""
    features = _features(changes, network, shown)[0]
    direction = F.normalize(F.normalize(features - centre, dim=-1).mean(dim=0), dim=0)
    aligned = None if directions is None else float(alignment(features, centre, directions))
    return Found(changes, float(centred_collapse(features, centre)), direction, aligned)


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
