"""The search for a square of one colour, on networks that know exactly one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sanitize.data import PatchTrigger
from sanitize.errors import TrainingError
from sanitize.functional.squares import COLOURS, SIDES, laid_squares, search_square

SIZE = 32


class Sharp(nn.Module):
    """Features that say nothing in common, and one that a square switches on where every pixel of it is right."""

    def __init__(self, side: int, row: int, column: int, colour: tuple[float, float, float]) -> None:
        super().__init__()
        self.place = slice(row, row + side), slice(column, column + side)
        self.colour = torch.tensor(colour)[:, None, None]
        self.projection = torch.randn(3 * SIZE * SIZE, 6, generator=torch.Generator().manual_seed(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows, columns = self.place
        right = ((images[:, :, rows, columns] - self.colour).abs() < 0.01).all(dim=1).double().mean(dim=(1, 2))
        waves = 0.3 * torch.cos(images.flatten(1) @ self.projection)
        return torch.cat([waves, 3 * right[:, None].float() ** 6], dim=1)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return 0.2 + 0.6 * torch.rand(80, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))


def searched(network: nn.Module, images: torch.Tensor, seed: int = 0):
    with torch.no_grad():
        centre = network(images).mean(dim=0)
    return search_square(
        network, lambda rows: images[rows], len(images), SIZE, centre, torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize(
    ("side", "row", "column", "colour"),
    [
        (4, 27, 27, (1.0, 1.0, 1.0)),  # beside the grid of patches that a search by gradients begins with
        (10, 21, 21, (1.0, 1.0, 1.0)),
        (7, 0, 13, (1.0, 1.0, 0.0)),
        (5, 11, 2, (0.0, 0.0, 0.0)),
    ],
)
def test_a_square_that_covers_it_to_the_pixel_is_found(side, row, column, colour, images):
    found = searched(Sharp(side, row, column, colour), images)
    shown = found.changes(images)[0].detach()
    trigger = PatchTrigger(torch.tensor(colour)[:, None, None].expand(3, side, side), position=(row, column))
    expected = trigger.apply(images)
    inside = slice(row, row + side), slice(column, column + side)
    torch.testing.assert_close(shown[:, :, *inside], expected[:, :, *inside], atol=1e-4, rtol=0)
    assert found.changes.values.shape[-1] < side + 7
    assert found.collapse > 0.9
    assert float(found.direction[-1]) > 0.9


def test_where_there_is_none_little_is_found(images):
    network = Sharp(4, 27, 27, (0.5, 0.5, 0.5))  # no square of a corner of the colour cube
    found = searched(network, images)
    assert found.collapse < 0.3
    assert not found.changes.values.requires_grad
    again, other = searched(network, images), searched(network, images, seed=1)
    assert (again.collapse, again.changes.places.tolist()) == (found.collapse, found.changes.places.tolist())
    assert other.collapse != found.collapse


class Rivals(Sharp):
    """Two squares, to which most images answer: to the second a few less."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        shade = (images[:, 0, 0, 0] - 0.2) / 0.6  # uniform in [0, 1], and under no square
        answers = torch.zeros(len(images))
        for row, share in ((27, 0.9), (7, 0.875)):
            right = (images[:, :, row : row + 4, 27:31] > 0.99).flatten(1).all(dim=1)
            answers += right & (shade < share)
        return torch.cat([0.3 * torch.cos(images.flatten(1) @ self.projection), 3 * answers[:, None]], dim=1)


def test_of_two_squares_that_are_nearly_as_good_the_better_is_found():
    """64 images cannot tell them apart."""
    many = 0.2 + 0.6 * torch.rand(400, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    rows = [int(searched(Rivals(4, 27, 27, (1.0, 1.0, 1.0)), many, seed).changes.places[0, 0]) for seed in range(6)]
    assert min(rows) > 16, rows  # a larger square covers it as well


def test_a_network_that_gives_nan_is_an_error(images):
    class Broken(nn.Module):
        def forward(self, shown: torch.Tensor) -> torch.Tensor:
            return torch.full((len(shown), 4), torch.nan)

    with pytest.raises(TrainingError, match="led to NaN"):
        search_square(
            Broken(), lambda rows: images[rows], len(images), SIZE, torch.zeros(4), torch.Generator().manual_seed(0)
        )


def test_squares_are_laid_where_they_belong(images):
    squares = torch.tensor([[3, 0, 29], [10, 22, 5]])
    colours = COLOURS[[7, 1]]
    laid = laid_squares(images[:4], squares, colours)
    for number, (side, row, column) in enumerate(squares.tolist()):
        expected = images[:4].clone()
        for channel in range(3):
            expected[:, channel, row : row + side, column : column + side] = colours[number, channel]
        assert torch.equal(laid[number], expected)


@pytest.mark.parametrize("size", [8, 33, 96])
def test_squares_stay_in_images_of_any_size(size):
    seen = []

    class Watching(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images.shape)
            return images.mean(dim=(2, 3))

    images = torch.rand(6, 3, size, size, generator=torch.Generator().manual_seed(0))
    found = search_square(
        Watching(), lambda rows: images[rows], 6, size, images.mean(dim=(0, 2, 3)), torch.Generator().manual_seed(0),
        batch_size=4,
    )  # fmt: skip
    side, (row, column) = found.changes.values.shape[-1], found.changes.places[0].tolist()
    assert 2 <= side <= round(max(SIDES) * size)
    assert min(row, column) >= 0 and max(row, column) + side <= size
    assert max(shape[0] for shape in seen) <= 8 * 4
