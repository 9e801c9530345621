"""One window an image, scored by the flip test; and what comes of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sanitize.data import DeviceImages, ImageSet
from sanitize.detection.base import Scores
from sanitize.detection.window_evidence import Evidence, windows_of
from sanitize.functional.masks import best_window
from sanitize.training.processes import Processes

Attention = Callable[[Tensor], Tensor]
"""Images (B, 3, H, W) in [0, 1] on the device -> maps (B, H, W)."""
Flip = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Windows (B, 3, w, w) uint8 and source clusters (B,) on the device -> share flipped, and of how many images."""
_CHUNK = 64  # images that are looked at together


@dataclass(frozen=True, kw_only=True)
class WindowScores(Scores):
    """Scores of windows; all tensors on the CPU.

    Args:
        values: See `Scores`; share of the flip images that the image's window flips, 0 where it was not scored.
        window: Side of the windows in pixels.
        corners: (N, 2) int64, top row and left column; -1 where the image was not scored.
        flips: (N,) int64, on how many images the window was tried; higher ranks before.
        clusters: (N,) int64, cluster of each image.
        top: (k,) int64, the rows that rank highest.
        maps: (k, H, W) float32, their attention maps.
        evidence: What the scores and windows show.
        poison: (N,) float32, probability of the poison classifier; None where there is no evidence to train it on.
        rounds: How often windows were weighed; `top` has those of all rounds, `evidence` is of the first.
    """

    window: int
    corners: Tensor
    flips: Tensor
    clusters: Tensor
    top: Tensor
    maps: Tensor
    evidence: Evidence
    poison: Tensor | None = None
    rounds: int = 1

    @property
    def columns(self) -> dict[str, Tensor]:
        """See `Scores.columns`."""
        listed = {"window_top": self.corners[:, 0], "window_left": self.corners[:, 1]}
        listed |= {"flips_tried": self.flips, "cluster": self.clusters}
        return listed | ({} if self.poison is None else {"poison_probability": self.poison})

    @property
    def order(self) -> Tensor:
        """(N,) int64, rows from the highest rank to the lowest."""
        return ranking(self.values, self.flips)


def ranking(values: Tensor, flips: Tensor) -> Tensor:
    """Rows from the highest rank to the lowest: by the number of flips tried, then by the score, then by row.

    Example:
        >>> ranking(torch.tensor([0.9, 1.0, 0.95]), torch.tensor([180, 6, 180])).tolist()
        [2, 0, 1]
    """
    by_score = values.argsort(descending=True, stable=True)
    return by_score[flips[by_score].argsort(descending=True, stable=True)]


class WindowSearch:
    """Windows and scores of the images that were asked about so far, the same in all processes.

    Args:
        data: The images.
        images: The same on the device.
        clusters: (N,) int64 on the CPU.
        window: Side in pixels.
        attention: Makes maps.
        flip: The flip test.
        processes: Share the search for windows, 64 images at a time.
    """

    def __init__(
        self,
        data: ImageSet,
        images: DeviceImages,
        clusters: Tensor,
        window: int,
        attention: Attention,
        flip: Flip,
        processes: Processes,
    ) -> None:
        self.values = torch.zeros(len(data))
        self.flips = torch.zeros(len(data), dtype=torch.int64)
        self.corners = torch.full((len(data), 2), -1)
        self._data, self._images = data, images
        self.clusters, self.window = clusters, window
        self._attention, self._flip, self._processes = attention, flip, processes

    def score(self, rows: Tensor) -> Tensor:
        """Find and try the windows of these images; their scores (B,)."""

        def places(part: Tensor) -> Tensor:
            return best_window(self._attention(self._images.pixels(part)), self.window)

        with self._processes.together(f"a search of {len(rows)} images"):
            self.corners[rows] = torch.cat([*self._processes.in_turns(torch.split(rows, _CHUNK), places)]).cpu()
        self.values[rows], self.flips[rows] = self.tried(rows, self.corners[rows])
        return self.values[rows]

    def again(self, rows: Tensor) -> WindowSearch:
        """The windows of these images alone, tried anew: where most are dropped early, others now stay to the end."""
        fresh = copy.copy(self)
        fresh.values, fresh.flips = torch.zeros_like(self.values), torch.zeros_like(self.flips)
        fresh.corners = torch.full_like(self.corners, -1)
        fresh.corners[rows] = self.corners[rows]
        fresh.values[rows], fresh.flips[rows] = self.tried(rows, self.corners[rows])
        return fresh

    def adopt(self, other: WindowSearch) -> None:
        """Take over what was tried anew."""
        rows = other.flips > 0
        self.values[rows], self.flips[rows] = other.values[rows], other.flips[rows]

    def tried(self, rows: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
        """The flip test of windows (B, 2) of images (B,): share flipped, and of how many images."""
        windows = windows_of(self._data.images, rows, corners, self.window)
        device = self._images.device
        share, flips = self._flip(windows.to(device), self.clusters[rows].to(device))
        return share.cpu(), flips.cpu()

    def maps(self, rows: Tensor) -> Tensor:
        """Attention maps (B, H, W) on the CPU."""
        return torch.cat(
            [self._attention(self._images.pixels(part)).float().cpu() for part in torch.split(rows, _CHUNK)]
        )

    def null(self, count: int, top: Tensor, generator: torch.Generator) -> Tensor:
        """Scores (count,) of windows from random places of random images.

        Not of images in the clusters of the `top` rows, where there are others: poisoned images lie there, and a random
        window may hit a trigger.
        """
        others = torch.nonzero(~torch.isin(self.clusters, self.clusters[top])).flatten()
        rows = others if len(others) else torch.arange(len(self.values))
        rows = rows[torch.randint(len(rows), (count,), generator=generator)]
        places = self._data.image_size - self.window + 1
        return self.tried(rows, torch.randint(places, (count, 2), generator=generator))[0]
