"""Does a small picture pull other images into a cluster? The flip test, its sequential version, and the search."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from sanitize.functional.clusters import Clusters
from sanitize.suspects.networks import Network
from sanitize.training import Engine

FlipRule = Literal["to_source", "any"]


class Assigner:
    """Nearest cluster of images, in batches on the device: one matrix product a batch.

    Args:
        network: Left unchanged.
        clusters: Whose centres count.
        engine: Device and precision.
        batch_size: Images at a time.
    """

    def __init__(self, network: Network, clusters: Clusters, engine: Engine, batch_size: int) -> None:
        self.network = copy.deepcopy(network).eval().to(engine.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.centres = clusters.centres.to(engine.device)
        self.batch_size = batch_size
        self.forwards = 0
        self.engine = engine
        self._half_norms = self.centres.square().sum(dim=1) / 2

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Cluster (B,) int64 and distance (B,) to its centre of images (B, 3, H, W) in [0, 1], on the device."""
        labels, distances = [], []
        for part in torch.split(images, self.batch_size):
            with self.engine.fabric.autocast():
                features = self.network(part.contiguous(memory_format=torch.channels_last))
            best = (functional.normalize(features.float()) @ self.centres.T - self._half_norms).max(dim=1)
            labels.append(best.indices)
            distances.append((1 - 2 * best.values).clamp(min=0).sqrt())  # |z|^2 = 1
            self.forwards += len(part)
        return torch.cat(labels), torch.cat(distances)


@dataclass(frozen=True)
class FlipTest:
    """Images near the centres, each with the place where windows are pasted on it.

    All windows meet an image at the same place, so that they are compared under equal conditions and pasting is a
    slice. With several processes each takes some batches of pairs of window and image; the counts are the same.

    Args:
        assign: Nearest cluster.
        images: (F, 3, H, W) uint8 on the device, in random order.
        before: (F,) int64, their clusters, on the device.
        corners: F pairs of top row and left column.
        rule: ``to_source``: images that come into the window's own cluster; ``any``: images whose cluster changes.
    """

    assign: Assigner
    images: Tensor
    before: Tensor
    corners: list[tuple[int, int]]
    rule: FlipRule = "to_source"

    def count(self, windows: Tensor, sources: Tensor, first: int, last: int) -> Tensor:
        """How many of the images first .. last-1 each window flips.

        Args:
            windows: (N, 3, w, w) uint8 on the device.
            sources: (N,) int64, the cluster of the image that a window comes from.
            first: Number of the first image.
            last: One more than the number of the last.

        Returns:
            (N,) float32 on the device. ``to_source``: images in the cluster afterwards, less those before; may be
            negative.
        """
        counted, batch = torch.zeros(len(windows), device=self.images.device), self.assign.batch_size
        pairs: list[tuple[Tensor, slice]] = []
        for chosen in torch.split(torch.arange(len(windows), device=self.images.device), batch):
            group = max(1, batch // len(chosen))
            pairs += [(chosen, slice(start, min(start + group, last))) for start in range(first, last, group)]

        def flipped(pair: tuple[Tensor, slice]) -> Tensor:
            return self._flipped(windows[pair[0]], sources[pair[0]], pair[1])

        processes = self.assign.engine.processes
        with processes.together(f"a flip test of {len(windows)} windows on images {first} to {last}"):
            for (chosen, _), counts in zip(pairs, processes.in_turns(pairs, flipped), strict=True):
                counted[chosen] += counts
        return counted

    def _flipped(self, windows: Tensor, sources: Tensor, rows: slice) -> Tensor:
        """The counts for these rows of the images, which with the windows are one batch."""
        size = windows.shape[-1]
        shown = self.images[rows, None].repeat(1, len(windows), 1, 1, 1)
        for number, (top, left) in enumerate(self.corners[rows]):
            shown[number, :, :, top : top + size, left : left + size] = windows
        labels = self.assign(shown.flatten(0, 1).float() / 255)[0].view(len(shown), -1)
        before = self.before[rows, None]
        if self.rule == "any":
            return (labels != before).float().sum(dim=0)
        return ((labels == sources).float() - (before == sources).float()).sum(dim=0)

    def plain(self, windows: Tensor, sources: Tensor) -> tuple[Tensor, Tensor]:
        """Share of all images that each window flips, (N,), and the number of images, (N,) int64."""
        total = len(self.images)
        return self.count(windows, sources, 0, total) / total, torch.full_like(sources, total)

    def halving(self, windows: Tensor, sources: Tensor, *, first: int, keep: int) -> tuple[Tensor, Tensor]:
        """The same for the best windows; the others are dropped after few images (sequential halving).

        After `first` images the better half is kept, then after twice as many, and so on; flips that were made are
        used again.

        Args:
            windows: (N, 3, w, w) uint8 on the device.
            sources: (N,) int64.
            first: Images of the first round.
            keep: Windows that are never dropped, at least.

        Returns:
            Share flipped, (N,), and of how many images, (N,) int64: rank by the number first.
        """
        counted = torch.zeros(len(windows), device=self.images.device)
        tried = torch.zeros_like(sources)
        left = torch.arange(len(windows), device=self.images.device)
        done, until = 0, min(first, len(self.images))
        while len(left):
            counted[left] += self.count(windows[left], sources[left], done, until)
            tried[left] = until
            if until == len(self.images):
                break
            order = counted[left].argsort(descending=True, stable=True)
            left = left[order[: max(keep, math.ceil(len(left) / 2))]]
            done, until = until, min(2 * until, len(self.images))
        return counted / tried.clamp(min=1), tried


def choose_flip_images(clusters: Clusters, count: int, generator: torch.Generator) -> Tensor:
    """The images closest to the centres, as many from each cluster as nearly as possible, in random order.

    Args:
        clusters: Of N images.
        count: How many; with fewer than there are clusters, random clusters give one each.
        generator: Of clusters and order.

    Returns:
        (min(count, N),) int64.
    """
    order = clusters.distances.argsort(stable=True)
    rank = torch.empty_like(order)
    for members in (order[clusters.assignment[order] == number] for number in range(len(clusters.centres))):
        rank[members] = torch.arange(len(members))
    lottery = torch.randperm(len(clusters.centres), generator=generator)[clusters.assignment]
    chosen = (rank * len(clusters.centres) + lottery).argsort()[:count]
    return chosen[torch.randperm(len(chosen), generator=generator)]


def iterative_search(
    assignment: Tensor,
    score: Callable[[Tensor], Tensor],
    *,
    per_cluster: int,
    dropped: float,
    generator: torch.Generator,
) -> None:
    """Score some images of every cluster, drop the clusters whose best score is lowest, and so on.

    It ends when no cluster has an image left, or so few clusters are left that none would be dropped.

    Args:
        assignment: (N,) int64, cluster of each image.
        score: Called with rows (B,) int64; gives their scores (B,).
        per_cluster: Images of a cluster that are scored in an iteration.
        dropped: Share of the clusters that is dropped in an iteration, in (0, 1).
        generator: Of the order of the images.
    """
    shuffled = torch.randperm(len(assignment), generator=generator)
    waiting: dict[int, Iterator[int]] = {
        number: iter(shuffled[assignment[shuffled] == number].tolist()) for number in sorted(set(assignment.tolist()))
    }
    best = dict.fromkeys(waiting, -math.inf)
    while waiting:
        rows = [row for queue in waiting.values() for _, row in zip(range(per_cluster), queue, strict=False)]
        if not rows:
            return
        values = score(torch.tensor(rows)).tolist()
        for row, value in zip(rows, values, strict=True):
            number = int(assignment[row])
            best[number] = max(best[number], value)
        fewer = int(dropped * len(waiting))
        if not fewer:
            return
        kept = sorted(waiting, key=lambda number: -best[number])[: len(waiting) - fewer]
        waiting = {number: waiting[number] for number in kept}
