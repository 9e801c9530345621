"""A reference set without labels: one cluster of the encoder's own features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor


@dataclass(frozen=True)
class Clusters:
    """K-means over L2-normalised features.

    Args:
        centres: (K, D).
        assignment: (N,) cluster of each image.
        distances: (N,) distance of each image to its centre.
    """

    centres: Tensor
    assignment: Tensor
    distances: Tensor

    def of(self, features: Tensor) -> Clusters:
        """The same groups of images, with the centres that other features (N, D) of these images give them."""
        normalised = F.normalize(features)
        groups = range(len(self.centres))
        centres = torch.stack([normalised[self.assignment == group].mean(dim=0) for group in groups])
        return Clusters(centres, self.assignment, (normalised - centres[self.assignment]).norm(dim=1))

    def nearest(self, features: Tensor) -> Tensor:
        """Cluster (N,) that each row of features (N, D) falls into."""
        return torch.cdist(F.normalize(features), self.centres).argmin(dim=1)


def cluster(features: Tensor, count: int, *, seed: int) -> Clusters:
    """Cluster features (N, D) into at most `count` groups; deterministic by seed."""
    normalised = F.normalize(features.float().cpu())
    model = KMeans(n_clusters=min(count, len(features)), n_init=10, random_state=seed).fit(normalised.numpy())
    centres = torch.from_numpy(model.cluster_centers_).float()
    assignment = torch.from_numpy(model.labels_).long()
    return Clusters(centres, assignment, (normalised - centres[assignment]).norm(dim=1))


def choose_reference_set(
    clusters: Clusters, *, minimum: int, share: float, generator: torch.Generator
) -> tuple[int, Tensor] | None:
    """One random cluster among those large enough, and the members nearest to its centre.

    Args:
        clusters: From `cluster`.
        minimum: Fewest members of an eligible cluster.
        share: Share of its members that are taken, in (0, 1]; one image at least.
        generator: Draws the cluster.

    Returns:
        Cluster number and image indices, or None when no cluster is large enough.
    """
    sizes = torch.bincount(clusters.assignment, minlength=len(clusters.centres))
    eligible = torch.nonzero(sizes >= minimum).flatten()
    if not len(eligible):
        return None
    chosen = int(eligible[torch.randint(len(eligible), (1,), generator=generator)])
    members = torch.nonzero(clusters.assignment == chosen).flatten()
    order = clusters.distances[members].argsort()
    return chosen, members[order[: max(1, round(share * len(members)))]]
