"""Squares of one colour at one place: the commonest trigger, and the one that a search by gradients misses.

What a backdoor answers to can be as sharp as a pixel: a square one pixel beside the attacker's, or of other colours,
says nothing of it, and no gradient leads there. So all sides, places and colours are tried, with few images each, and
the best are moved about.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sanitize.errors import TrainingError
from sanitize.functional.changes import Patches
from sanitize.functional.collapse import Found, centred_collapse, measured_change

SIDES = (1 / 8, 3 / 16, 1 / 4, 5 / 16)  # of the image's; larger squares collapse clean encoders, too
COLOURS = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)  # black, white, and what lies between at the corners
FIRST_IMAGES, THEN_IMAGES, LAST_IMAGES = 2, 8, 256
GO_ON, KEPT = 12, 8  # one in so many is looked at again, so many of a side are moved about
SURE = 12.0  # before the sigmoid: a colour that is all but 0 or 1


def search_square(
    network: Callable[[Tensor], Tensor],
    pixels: Callable[[Tensor], Tensor],
    images: int,
    image_size: int,
    centre: Tensor,
    generator: torch.Generator,
    *,
    batch_size: int = 64,
) -> Found:
    """The square of one colour that makes a network's outputs for different images collapse most.

    A grid of places for each of four sides, in eight colours, with 2 images a candidate; the best twelfth with 8; the
    best eight of each side are then moved, enlarged and shrunk, three times or more, by ever smaller steps. All that
    were among the best on the way are compared in the end, with `batch_size` images, and the best of these with 256.

    Args:
        network: Images (B, 3, H, W) -> (B, D); in eval mode.
        pixels: Indices (B,) -> images in [0, 1].
        images: How many there are, at least 2.
        image_size: Height and width.
        centre: (D,) mean output for clean images.
        generator: Of the images that are looked at.
        batch_size: Images of the last measurement; eight times as many, or 256, are in memory at once.

    Returns:
        A change of the kind `Patches`, and the collapse that it reaches.

    Raises:
        TrainingError: The network gives NaN for images with the best square.
    """

    def scored(squares: Tensor, count: int) -> Tensor:
        drawn = torch.randperm(images, generator=generator)[:count]
        shown, colours = pixels(drawn), COLOURS.to(centre)
        scores = []
        for group in torch.split(squares.to(centre.device), max(1, 8 * batch_size // len(shown))):
            laid = laid_squares(shown, group[:, :3], colours[group[:, 3]])
            features = network(laid.flatten(0, 1)).float()
            scores.append(centred_collapse(features.view(len(group), len(shown), -1), centre))
        return torch.cat(scores).nan_to_num(nan=-math.inf).cpu()

    def best(squares: Tensor, count: int, kept: int) -> Tensor:
        return squares[scored(squares, count).argsort(descending=True, stable=True)[:kept]]

    with torch.no_grad():
        found = []
        for side in sorted({max(2, round(image_size * share)) for share in SIDES}):
            every = _grid(side, image_size)
            some = best(every, FIRST_IMAGES, max(KEPT, len(every) // GO_ON))
            found.append(best(some, THEN_IMAGES, KEPT))
        squares, step = torch.cat(found), max(1, image_size // 32)
        for _ in range(2 + step.bit_length()):
            squares = best(_neighbours(squares, step, image_size), THEN_IMAGES, KEPT)
            found.append(squares)  # 8 images are few: what is lost on the way shall be looked at again in the end
            step = max(1, step // 2)
        last = best(torch.unique(torch.cat(found), dim=0), batch_size, KEPT)
        side, row, column, colour = best(last, LAST_IMAGES, 1)[0].tolist()
        values = (2 * COLOURS[colour] - 1)[None, :, None, None].expand(1, 3, side, side) * SURE
        change = Patches(values.clone(), torch.tensor([[row, column]]), image_size).to(centre.device)
        change.requires_grad_(False)
        drawn = torch.randperm(images, generator=generator)[:batch_size]
        reached = measured_change(change, network, pixels(drawn), centre)
    if not math.isfinite(reached.collapse):
        raise TrainingError(
            "the search for a square led to NaN: the network gives NaN for some images with a square on them. "
            "Check --normalization, or use --precision 32-true."
        )
    return reached


def laid_squares(images: Tensor, squares: Tensor, colours: Tensor) -> Tensor:
    """Every square over every image.

    Args:
        images: (N, 3, H, W).
        squares: (P, 3): side, row and column of the upper left corner, in pixels.
        colours: (P, 3) in [0, 1].

    Returns:
        (P, N, 3, H, W).
    """
    side, row, column = squares.T[:, :, None]
    rows = torch.arange(images.shape[-2], device=images.device)
    columns = torch.arange(images.shape[-1], device=images.device)
    down, across = (rows >= row) & (rows < row + side), (columns >= column) & (columns < column + side)
    inside = (down[:, :, None] & across[:, None, :])[:, None, None]
    return torch.where(inside, colours[:, None, :, None, None], images[None])


def _grid(side: int, image_size: int) -> Tensor:
    """(P, 4): side, row, column, number of the colour; places a third of the side apart, and at the far rim."""
    along = torch.tensor(sorted({*range(0, image_size - side + 1, max(1, side // 3)), image_size - side}))
    return torch.cartesian_prod(torch.tensor([side]), along, along, torch.arange(len(COLOURS)))


def _neighbours(squares: Tensor, step: int, image_size: int) -> Tensor:
    """Squares (P, 4), and all that are `step` pixels away, larger or smaller, and lie in the image."""
    by = torch.tensor([-step, 0, step])
    moves = torch.cartesian_prod(by, by, by, torch.tensor([0]))
    moved: Tensor = torch.unique((squares[:, None] + moves).flatten(0, 1), dim=0)
    side, corner = moved[:, 0], moved[:, 1:3]
    inside = (corner >= 0).all(dim=1) & (corner + side[:, None] <= image_size).all(dim=1)
    return moved[inside & (side >= 2) & (side <= round(max(SIDES) * image_size))]
