"""The reference set: clusters that are there are found, and small ones are not chosen."""

from __future__ import annotations

import torch

from sanitize.functional.clusters import choose_reference_set, cluster


def blobs(*sizes: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    directions = torch.eye(len(sizes))
    return torch.cat(
        [5 * directions[i] + 0.05 * torch.randn(size, len(sizes), generator=generator) for i, size in enumerate(sizes)]
    )


def test_separate_blobs_become_clusters():
    found = cluster(blobs(20, 30, 10), 3, seed=0)
    truth = torch.tensor([0] * 20 + [1] * 30 + [2] * 10)
    for label in range(3):
        assert len(found.assignment[truth == label].unique()) == 1
    assert len(found.assignment.unique()) == 3


def test_nearest_agrees_with_the_assignment():
    features = blobs(20, 30, 10)
    found = cluster(features, 3, seed=0)
    assert torch.equal(found.nearest(features), found.assignment)


def test_clusters_are_deterministic_by_seed():
    features = torch.randn(60, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(cluster(features, 5, seed=3).assignment, cluster(features, 5, seed=3).assignment)


def test_the_reference_set_is_the_inner_half_of_a_large_cluster():
    found = cluster(blobs(40, 4), 2, seed=0)
    for seed in range(5):
        number, members = choose_reference_set(
            found, minimum=10, share=0.5, generator=torch.Generator().manual_seed(seed)
        )
        assert len(members) == 20
        assert set(members.tolist()) <= set(range(40))
        outside = found.distances[found.assignment == number].sort().values[20:]
        assert float(found.distances[members].max()) <= float(outside.min())


def test_no_cluster_is_large_enough():
    assert (
        choose_reference_set(cluster(blobs(5, 5), 2, seed=0), minimum=6, share=0.5, generator=torch.Generator()) is None
    )


def test_centres_follow_the_features_of_another_network():
    features = blobs(20, 30, 10)
    found = cluster(features, 3, seed=0)
    turned = features.roll(1, dims=1)
    moved = found.of(turned)
    assert torch.equal(moved.nearest(turned), found.assignment)
    assert torch.allclose(found.of(features).centres, found.centres, atol=1e-5)
