"""Universal changes of the input: one perturbation, picture or patch for all images, many searched side by side."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal, Self, get_args

import torch
from torch import Tensor, nn

Family = Literal["perturbation", "patch"]
FAMILIES: tuple[Family, ...] = get_args(Family)
BOUND, STRONGEST, STRONGEST_SHARE, SMALL_PATCH, LARGE_PATCH = 0.05, 3, 0.3, 1 / 8, 1 / 4


class Changes(nn.Module):
    """Universal changes of the input, searched side by side; what a search comes back with is one of them."""

    step_size: float
    """Learning rate of Adam."""

    first_images: int
    """A candidate, as a search begins; what covers the image needs more than patches, of which there are many."""

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
    def picture(self) -> Tensor:
        """What the first candidate looks like: (3, H, W) in [0, 1]."""


class WholeChanges(Changes):
    """Changes of the whole image: a candidate is its values and nothing else."""

    first_images = 16

    def select(self, which: Tensor) -> Self:
        """See `Changes`."""
        return self._alike(self.values.detach()[which].clone())

    def joined(self, others: Self) -> Self:
        """See `Changes`."""
        return self._alike(torch.cat([self.values.detach(), others.values.detach()]))

    @abstractmethod
    def _alike(self, values: Tensor) -> Self:
        """Other candidates with the same limits."""


class Perturbations(WholeChanges):
    """Adds one picture of small values: ``clamp(x + delta)``, ``|delta| <= bound``.

    Args:
        values: (P, 3, H, W) where the search sets out.
        bound: Largest change of a pixel, in (0, 1].
    """

    bound: Tensor

    def __init__(self, values: Tensor, bound: float) -> None:
        super().__init__()
        self.values = nn.Parameter(values)
        self.register_buffer("bound", torch.tensor(bound))  # kept with the values, since a pool holds several bounds
        self.step_size = bound / 5

    @classmethod
    def start(cls, count: int, image_size: int, bound: float, generator: torch.Generator) -> Perturbations:
        """Candidates that are uniform within a quarter of the bound."""
        uniform = 2 * torch.rand(count, 3, image_size, image_size, generator=generator) - 1
        return cls(uniform * bound / 4, bound)

    def forward(self, images: Tensor) -> Tensor:
        """See `Changes`."""
        return (images + self.values[:, None]).clamp(0, 1)

    @torch.no_grad()
    def project_(self) -> None:
        """Into the bound."""
        self.values.clamp_(-self.bound, self.bound)

    def varied(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Up to three times as strong: a bound that clean networks bear is less than a trigger may be."""
        strength = 1 + (STRONGEST - 1) * torch.rand(len(images), 1, 1, 1, generator=generator)
        return torch.clamp(images + strength.to(images) * self.values[:1], 0, 1)

    def picture(self) -> Tensor:
        """Grey is 0, the bound is black and white."""
        return (self.values.detach()[0] / (2 * self.bound) + 0.5).clamp(0, 1)

    def _alike(self, values: Tensor) -> Self:
        return type(self)(values, 5 * self.step_size).to(values.device)


class Blends(WholeChanges):
    """Blends a picture into every image, ``(1 - share) x + share picture``, which also takes contrast from it.

    Args:
        values: (P, 3, H, W) where the search sets out; pictures before the sigmoid.
        share: Of the picture, in (0, 1].
    """

    step_size = 0.5
    share: Tensor

    def __init__(self, values: Tensor, share: float) -> None:
        super().__init__()
        self.values = nn.Parameter(values)
        self.register_buffer("share", torch.tensor(share))  # kept with the values, since a pool holds several shares

    @classmethod
    def start(cls, count: int, image_size: int, share: float, generator: torch.Generator) -> Blends:
        """Pictures of noise."""
        return cls(torch.randn(count, 3, image_size, image_size, generator=generator), share)

    def forward(self, images: Tensor) -> Tensor:
        """See `Changes`."""
        return torch.lerp(images[None], self.values.sigmoid()[:, None], self.share)

    def project_(self) -> None:
        """The sigmoid keeps colours in range."""

    def varied(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Up to three tenths of the picture: a share that clean networks bear is less than a trigger's may be."""
        share = torch.rand(len(images), 1, 1, 1, generator=generator).to(images)
        share = self.share + share * (max(STRONGEST_SHARE, float(self.share)) - self.share)
        return torch.lerp(images, self.values[:1].sigmoid().to(images), share)

    def picture(self) -> Tensor:
        """The picture itself."""
        return self.values.detach()[0].sigmoid()

    def _alike(self, values: Tensor) -> Self:
        return type(self)(values, float(self.share)).to(values.device)


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
    def picture(self) -> Tensor:
        """The patch at its place on grey."""
        shown: Tensor = self(torch.full((1, 3, self.image_size, self.image_size), 0.5).to(self.values))[0, 0]
        return shown


def _laid(images: Tensor, colours: Tensor, places: Tensor) -> Tensor:
    """Square i (3, size, size), before the sigmoid, over image i at place i (2,)."""
    along = torch.arange(colours.shape[-1], device=images.device)
    number = torch.arange(len(images), device=images.device)[:, None, None]
    rows, columns = (places[:, :1] + along)[:, :, None], (places[:, 1:] + along)[:, None, :]
    shown = images.permute(0, 2, 3, 1).index_put(
        (number, rows, columns), colours.sigmoid().permute(0, 2, 3, 1).to(images.dtype)
    )
    return shown.permute(0, 3, 1, 2)
