"""Windows of one thing agree, wherever it lies in them; others do not."""

from __future__ import annotations

import torch
from torch.nn import functional

from sanitize.functional.agreement import agreement, likeness

GREY = torch.full((3,), 0.5)


def noise(count: int, side: int = 9, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def with_patch(count: int, patches: int = 1) -> torch.Tensor:
    """Windows of 9 px with one of some patches of 7 px, at different places."""
    windows, known = noise(count), noise(patches, 7, seed=1)
    for number in range(count):
        top, left = number % 3, number // 3 % 3
        windows[number, :, top : top + 7, left : left + 7] = known[number % patches]
    return windows


def test_likeness_is_the_best_cosine_of_all_shifts():
    windows, others = noise(3), noise(4, seed=5)
    found = likeness(windows, others, GREY)
    for i in range(3):
        middle = (windows[i, :, 2:7, 2:7] - 0.5).flatten()
        for j in range(4):
            parts = [(others[j, :, a : a + 5, b : b + 5] - 0.5).flatten() for a in range(5) for b in range(5)]
            best = max(float(functional.cosine_similarity(middle, part, dim=0)) for part in parts)
            assert abs(float(found[i, j]) - best) < 1e-5


def test_a_moved_patch_agrees_and_noise_does_not():
    assert agreement(with_patch(20), noise(200, seed=9), GREY) > 3
    assert agreement(noise(20), noise(200, seed=9), GREY) < 1


def test_several_triggers_agree_in_groups():
    assert agreement(with_patch(20, patches=3), noise(200, seed=9), GREY) > 3


def test_plain_windows_of_a_rare_colour_agree_and_those_of_a_common_one_do_not():
    dark, light = torch.zeros(10, 3, 6, 6), torch.ones(10, 3, 6, 6)
    common = torch.cat([torch.zeros(90, 3, 6, 6), noise(10, 6)])
    assert agreement(light, common, torch.full((3,), 0.1)) > 3
    assert agreement(dark, common, torch.full((3,), 0.1)) == 1


def test_large_windows_are_compared_at_a_bounded_size():
    large, others = (functional.interpolate(windows, scale_factor=8) for windows in (with_patch(20), noise(200)))
    assert agreement(large, others, GREY) > 2
