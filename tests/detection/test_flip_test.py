"""The flip test against a loop, halving against the plain test, and the search against its rules."""

from __future__ import annotations

import torch

from sanitize.detection.flip_test import Assigner, FlipTest, choose_flip_images, iterative_search
from sanitize.functional.clusters import Clusters, cluster
from sanitize.training import Engine
from tests.encoders import small_encoder


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assigner(batch_size: int = 64) -> tuple[Assigner, torch.Tensor, Clusters]:
    network = small_encoder()
    colours = torch.randint(100, 156, (60, 3, 1, 1), generator=generator())  # near each other: a window tells
    images = (colours + torch.randint(10, (60, 3, 32, 32), generator=generator(1))).to(torch.uint8)
    with torch.no_grad():
        found = cluster(network(images.float() / 255), 5, seed=0)
    return Assigner(network, found, Engine(device="cpu"), batch_size), images, found


def flip_test(rule="to_source", batch_size=64, count=24) -> tuple[FlipTest, torch.Tensor, torch.Tensor]:
    assign, images, clusters = assigner(batch_size)
    corners = torch.randint(32 - 9, (count, 2), generator=generator(2)).tolist()
    test = FlipTest(assign, images[:count], clusters.assignment[:count], corners, rule)
    windows = (torch.rand(20, 3, 1, 1, generator=generator(3)) * 255).expand(-1, -1, 9, 9).to(torch.uint8)
    return test, windows, torch.randint(5, (20,), generator=generator(4))


def test_the_nearest_centre_is_that_of_all_distances():
    assign, images, clusters = assigner(batch_size=7)
    with torch.no_grad():
        features = torch.nn.functional.normalize(small_encoder()(images.float() / 255))
    apart = torch.stack([(features - centre).norm(dim=1) for centre in clusters.centres], dim=1)
    labels, distances = assign(images.float() / 255)
    assert torch.equal(labels, apart.argmin(dim=1))
    torch.testing.assert_close(distances, apart.amin(dim=1), atol=1e-3, rtol=1e-3)
    assert assign.forwards == 60


def test_flips_are_those_of_a_loop():
    for rule in ("to_source", "any"):
        test, windows, sources = flip_test(rule, batch_size=13)
        slow = torch.zeros(20)
        for n in range(20):
            for f, (top, left) in enumerate(test.corners):
                image = test.images[f].clone()
                image[:, top : top + 9, left : left + 9] = windows[n]
                now, before = int(test.assign(image[None].float() / 255)[0]), int(test.before[f])
                slow[n] += now != before if rule == "any" else (now == sources[n]).int() - (before == sources[n]).int()
        assert slow.abs().sum() > 20
        assert torch.equal(test.count(windows, sources, 0, 24), slow)
        share, tried = test.plain(windows, sources)
        torch.testing.assert_close(share, slow / 24)
        assert (tried == 24).all()
        parts = test.count(windows, sources, 0, 5) + test.count(windows, sources, 5, 24)
        assert torch.equal(parts, slow)


def test_no_batch_is_larger_than_asked():
    test, windows, sources = flip_test(batch_size=13)
    sizes: list[int] = []
    test.assign.network.register_forward_hook(lambda module, given, output: sizes.append(len(output)))
    test.halving(windows, sources, first=3, keep=2)
    test.plain(windows, sources)
    assert max(sizes) <= 13


def test_the_rules_differ():
    counts = [test.count(windows, sources, 0, 24) for test, windows, sources in map(flip_test, ("to_source", "any"))]
    assert not torch.equal(*counts)
    assert (counts[0] <= counts[1]).all()


def test_halving_finds_what_the_plain_test_finds_with_fewer_images():
    test, windows, sources = flip_test()
    plain, _ = test.plain(windows, sources)
    before = test.assign.forwards
    share, tried = test.halving(windows, sources, first=6, keep=5)
    assert test.assign.forwards - before < 0.75 * 20 * 24
    kept = tried == 24
    assert kept.sum() == 5
    assert torch.equal(share[kept], plain[kept])
    assert set(tried.tolist()) == {6, 12, 24}
    assert plain[kept].min() >= plain.sort(descending=True).values[8]
    everything, _ = test.halving(windows, sources, first=6, keep=20)
    assert torch.equal(everything, plain)
    assert torch.equal(test.halving(windows, sources, first=99, keep=1)[0], plain)


def test_flip_images_are_the_closest_of_each_cluster():
    _, _, clusters = assigner()
    chosen = choose_flip_images(clusters, 10, generator())
    assert len(chosen.unique()) == 10
    for number in range(5):
        members = torch.nonzero(clusters.assignment == number).flatten()
        count = int((clusters.assignment[chosen] == number).sum())
        assert count == 2 or count == len(members)
        nearest = members[clusters.distances[members].argsort(stable=True)[:count]]
        assert set(nearest.tolist()) <= set(chosen.tolist())
    few = choose_flip_images(clusters, 3, generator())
    assert len(clusters.assignment[few].unique()) == 3
    assert len(choose_flip_images(clusters, 1000, generator())) == 60
    assert not torch.equal(chosen, choose_flip_images(clusters, 10, generator(1)))


def test_the_search_stays_with_the_clusters_that_have_the_best_scores():
    assignment = torch.arange(400) % 8
    quality = torch.where(torch.arange(400) % 8 == 5, 1.0, 0.1 * (torch.arange(400) % 8))
    asked: list[int] = []

    def score(rows: torch.Tensor) -> torch.Tensor:
        asked.extend(rows.tolist())
        return quality[rows]

    iterative_search(assignment, score, per_cluster=2, dropped=0.25, generator=generator())
    counts = torch.bincount(assignment[asked], minlength=8)
    assert len(set(asked)) == len(asked)
    assert counts.tolist()[5] == max(counts.tolist()) == 10  # clusters left: 8, 6, 5, 4, 3
    assert counts.tolist() == [2, 2, 4, 6, 8, 10, 10, 10]


def test_the_search_ends_when_no_image_is_left():
    asked: list[int] = []

    def score(rows: torch.Tensor) -> torch.Tensor:
        asked.extend(rows.tolist())
        return torch.zeros(len(rows))

    iterative_search(torch.arange(8) % 4, score, per_cluster=99, dropped=0.3, generator=generator())
    assert sorted(asked) == list(range(8))
