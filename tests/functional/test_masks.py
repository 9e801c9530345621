"""Masks, attention maps and windows, against loops over pixels."""

from __future__ import annotations

import pytest
import torch

from sanitize.functional.masks import best_window, cluster_activation, cut, cyclic_windows, masks_for


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_windows_are_cyclic():
    corners = torch.tensor([[0, 0], [5, 2], [9, 9]])
    found = cyclic_windows(corners, 10, 4)
    for mask, (top, left) in zip(found, corners.tolist(), strict=True):
        slow = torch.zeros(10, 10, dtype=torch.bool)
        for p in range(4):
            for q in range(4):
                slow[(top + p) % 10, (left + q) % 10] = True
        assert torch.equal(mask, slow)


def test_all_places_cover_every_pixel_alike():
    corners = torch.cartesian_prod(torch.arange(12), torch.arange(12))
    coverage = cyclic_windows(corners, 12, 5).sum(dim=0)
    assert (coverage == 25).all()


@pytest.mark.parametrize("stride", [3, 4, 5])
def test_a_grid_covers_everything_if_its_stride_is_not_larger_than_the_window(stride):
    masks = masks_for("grid", 32, 5, count=1, stride=stride, generator=generator())
    assert len(masks) == (-(-32 // stride)) ** 2
    assert (masks.sum(dim=0) >= 1).all()
    assert (masks.sum(dim=(1, 2)) == 25).all()


def test_random_windows_cover_the_border_as_often_as_the_middle():
    masks = masks_for("random", 16, 5, count=6000, stride=1, generator=generator()).float()
    coverage = masks.mean(dim=0)
    assert (coverage - 25 / 256).abs().max() < 0.02


def test_neighbouring_blocks_of_an_interval_mask_differ():
    masks = masks_for("interval", 18, 9, count=20, stride=1, generator=generator())
    assert (masks[:, 3:] ^ masks[:, :-3]).all()
    assert (masks[:, :, 3:] ^ masks[:, :, :-3]).all()
    assert len(masks.flatten(1).unique(dim=0)) > 5  # of 18 that there are


def test_random_blocks_hide_the_area_of_a_window():
    masks = masks_for("blocks", 32, 9, count=500, stride=1, generator=generator())
    assert masks.float().mean() == pytest.approx((9 / 32) ** 2, abs=0.01)
    assert torch.equal(masks[:, 0, :3], masks[:, 0, :1].expand(-1, 3))


def test_kinds_of_masks_depend_on_the_generator_alone():
    for kind in ("random", "interval", "blocks"):
        made = [masks_for(kind, 16, 6, count=9, stride=4, generator=generator(seed)) for seed in (1, 1, 2)]
        assert torch.equal(made[0], made[1])
        assert not torch.equal(made[0], made[2])


def test_activation_is_that_of_the_formula():
    random = generator(3)
    labels = torch.randint(3, (6, 8), generator=random)
    labels[0] = torch.tensor([1, 1, 1, 1, 2, 2, 2, 2])  # a tie: the unmasked image decides
    labels[1] = 0
    distances = torch.rand(6, 8, generator=random)
    distances[1] = 0.4  # equal distances count 0
    own = torch.tensor([2, 0, 1, 2, 0, 1])
    masks = torch.rand(8, 5, 5, generator=random) < 0.4
    found = cluster_activation(labels, distances, own, masks, 3)
    for n in range(6):
        votes = [int((labels[n] == c).sum()) for c in range(3)]
        usual = int(own[n]) if votes[own[n]] == max(votes) else votes.index(max(votes))
        span = float(distances[n].max() - distances[n].min())
        slow = torch.zeros(5, 5)
        for m in range(8):
            scaled = float(distances[n, m] - distances[n].min()) / span if span else 0.0
            slow += (1.0 if int(labels[n, m]) != usual else scaled) * masks[m]
        torch.testing.assert_close(found[n], slow / masks.sum(dim=0).clamp(min=1))
    assert (found[1] == 0).all()
    assert 0 <= found.min() <= found.max() <= 1


def test_the_best_window_is_that_of_brute_force():
    maps = torch.rand(10, 9, 9, generator=generator())
    maps[0] = 0  # all places are equal: the first
    for row, (top, left) in enumerate(best_window(maps, 4).tolist()):
        sums = {(a, b): float(maps[row, a : a + 4, b : b + 4].double().sum()) for a in range(6) for b in range(6)}
        assert sums[top, left] == pytest.approx(max(sums.values()))
    assert best_window(maps, 4)[0].tolist() == [0, 0]
    assert best_window(maps, 9).tolist() == [[0, 0]] * 10


def test_windows_are_cut_where_they_are():
    images = torch.rand(5, 3, 8, 8, generator=generator())
    corners = torch.tensor([[0, 0], [4, 4], [1, 3], [2, 0], [0, 4]])
    for image, window, (top, left) in zip(images, cut(images, corners, 4), corners.tolist(), strict=True):
        assert torch.equal(window, image[:, top : top + 4, left : left + 4])
