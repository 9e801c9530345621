"""The transformations against torchvision, image by image, and the metric against a loop."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as reference
from torchvision.transforms import InterpolationMode

from sanitize.functional.consistency import feature_consistency, transform

NAMES = ("rotate", "shift", "flip", "crop", "blur", "erase")


def some_images(count: int = 6, height: int = 20, width: int = 24) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_metric_is_that_of_a_loop():
    first, second = torch.randn(5, 7, generator=seeded()), torch.randn(5, 7, generator=seeded(1))
    expected = [sum((float(first[i, j]) - float(second[i, j])) ** 2 for j in range(7)) / 7 for i in range(5)]
    torch.testing.assert_close(feature_consistency(first, second), torch.tensor(expected))


def test_rotation_is_torchvisions():
    images = some_images()
    angles = (2 * torch.rand(1, len(images), generator=seeded())[0] - 1) * 180
    expected = torch.stack(
        [
            reference.rotate(image, -float(angle), interpolation=InterpolationMode.NEAREST)
            for image, angle in zip(images, angles, strict=True)
        ]
    )
    rotated = transform(images, ("rotate",), seeded())
    # Neighbours at the same distance may be chosen otherwise.
    assert (rotated == expected).float().mean() > 0.99
    assert angles.abs().max() > 90


def test_shift_is_torchvisions():
    images = some_images()
    drawn = 0.4 * torch.rand(2, len(images), generator=seeded()) - 0.2
    shifted = transform(images, ("shift",), seeded())
    for image, result, down, right in zip(images, shifted, drawn[0] * 20, drawn[1] * 24, strict=True):
        translate = [round(float(right)), round(float(down))]
        assert torch.equal(result, reference.affine(image, angle=0, translate=translate, scale=1, shear=[0, 0]))


def test_crop_is_pad_and_slice():
    images = some_images()
    cropped = transform(images, ("crop",), seeded())
    corners = set()
    for image, result in zip(images, cropped, strict=True):
        padded = F.pad(image, [4] * 4)
        found = [
            (top, left)
            for top in range(9)
            for left in range(9)
            if torch.equal(padded[:, top : top + 20, left : left + 24], result)
        ]
        assert len(found) == 1
        corners |= set(found)
    assert len(corners) > 3


def test_flip_is_left_and_right():
    assert torch.equal(transform(some_images(), ("flip",), seeded()), some_images().flip(-1))


def test_blur_is_torchvisions():
    images = some_images()
    sigmas = 0.1 + 1.9 * torch.rand(1, len(images), generator=seeded())[0]
    expected = torch.stack(
        [
            reference.gaussian_blur(image, [15, 15], [float(sigma)] * 2)
            for image, sigma in zip(images, sigmas, strict=True)
        ]
    )
    torch.testing.assert_close(transform(images, ("blur",), seeded()), expected, atol=1e-5, rtol=0)


def test_erase_replaces_one_rectangle():
    images = torch.full((40, 3, 32, 32), 2.0)
    erased = transform(images, ("erase",), seeded())
    changed = (erased != 2).any(dim=1)
    for mask in changed:
        rows, columns = mask.any(dim=1).nonzero().flatten(), mask.any(dim=0).nonzero().flatten()
        height, width = len(rows), len(columns)
        assert int(mask.sum()) == height * width
        assert 0.18 < height * width / 32**2 < 0.33
        assert 0.45 < height / width < 1.1
    assert 0 <= erased[erased != 2].min() < erased[erased != 2].max() < 1


@pytest.mark.parametrize("name", NAMES)
def test_each_keeps_range_shape_and_input_and_repeats_itself(name):
    images = some_images()
    result = transform(images, (name,), seeded())
    assert result.shape == images.shape
    assert result.min() >= 0
    assert result.max() <= 1 + 1e-6
    assert torch.equal(images, some_images())
    assert torch.equal(result, transform(images, (name,), seeded()))
    assert not torch.equal(result, images)
    assert torch.equal(result, transform(images, (name,), seeded(1))) == (name == "flip")


def test_images_of_a_batch_are_transformed_differently():
    same = some_images(1).expand(8, -1, -1, -1)
    for name in set(NAMES) - {"flip"}:
        assert len({tuple(image.flatten().tolist()) for image in transform(same, (name,), seeded())}) > 4, name


def test_transformations_follow_one_another():
    generator = seeded()
    step = transform(transform(some_images(), ("rotate",), generator), ("shift",), generator)
    assert torch.equal(step, transform(some_images(), ("rotate", "shift"), seeded()))
