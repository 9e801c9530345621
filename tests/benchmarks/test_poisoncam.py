"""Poison of several targets in one data set: each class has a patch of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.lab import Lab
from benchmarks.poisoncam import PROFILES, _by_trigger, changed_boxes, poisoned_by_patches, transformer_of
from benchmarks.profiles import DIGITS
from sanitize.suspects import build


def test_each_target_has_a_patch_of_its_own(tmp_path):
    lab = Lab(replace(DIGITS, train="digits#0:400"), tmp_path, device="cpu")
    poison = poisoned_by_patches(lab, (1, 2, 4))
    labels, poisoned = lab.train.labels, poison.truth.poisoned
    assert [trigger.target for trigger in poison.triggers] == [1, 2, 4]
    assert len({trigger.sha256 for trigger in poison.triggers}) == 3
    for target in range(10):
        count = int((labels == target).sum())
        assert int(poisoned[labels == target].sum()) == (count // 2 if target in (1, 2, 4) else 0)
    boxes = changed_boxes(lab.train.images, poison.data.images)
    assert torch.equal(boxes[:, 2] > 0, poisoned)
    alone = poisoned_by_patches(lab, (1,))
    assert torch.equal(alone.data.images[labels == 1], poison.data.images[labels == 1])

    removed = poisoned & (labels != 4)
    top = torch.nonzero(poisoned & (labels == 2)).flatten()
    assert _by_trigger(lab, poisoned, removed, top) == {"least_recall": 0.0, "top20_triggers": 1.0}
    assert _by_trigger(lab, torch.zeros_like(poisoned), removed, top) == {}


@pytest.mark.parametrize("name", list(PROFILES))
def test_the_vision_transformer_takes_the_images_of_each_profile(name):
    profile = PROFILES[name]
    network = build(transformer_of(profile), kind="encoder", image_size=profile.image_size)
    assert network.output_size == (384 if name == "paper" else 128)
