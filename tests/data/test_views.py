"""Views against slow per-image references: torchvision and torch, one image at a time."""

from __future__ import annotations

import colorsys
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from sanitize.data.views import SSLViews, blurred, crop_boxes, cutmix, recolor, resized_crops, solarised
from sanitize.errors import ConfigError

NEUTRAL = {"min_scale": 1.0, "jitter": 0.0, "grey": 0.0, "flip": 0.0, "blur": 0.0, "solarise": 0.0}
OPTIONS = [{"min_scale": 0.2}, {"jitter": 0.4}, {"grey": 0.5}, {"flip": 0.5}, {"blur": 0.5}, {"solarise": 0.5}]


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images(count: int = 16, size: int = 32, low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand(count, 3, size, size, generator=_seeded(7))


def _recolor(images: Tensor, **factors: float) -> Tensor:
    count = len(images)
    values = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0, "grey": 0.0} | factors
    tensors = {name: torch.full((count,), value) for name, value in values.items()}
    return recolor(images, **(tensors | {"grey": tensors["grey"] > 0}))


@pytest.mark.parametrize("size", [32, 48])
def test_crop_and_flip_equal_torch_one_image_at_a_time(size: int) -> None:
    images = _images()
    drawn = torch.rand(16, 22, generator=_seeded(1))
    boxes = crop_boxes(drawn[:, :20], drawn[:, 20:], 32, 32, 0.2)
    flipped = torch.arange(16) % 2 == 0
    result = resized_crops(images, boxes, flipped, size)
    for image, box, mirror, view in zip(images, boxes.int().tolist(), flipped, result, strict=True):
        top, left, height, width = box
        crop = image[None, :, top : top + height, left : left + width]
        reference = functional.interpolate(crop, size=(size, size), mode="bilinear", align_corners=False)[0]
        reference = reference.flip(2) if mirror else reference
        torch.testing.assert_close(view, reference, atol=2e-5, rtol=0)


def test_a_crop_does_not_show_what_lies_outside_of_it() -> None:
    images = torch.ones(1, 3, 32, 32)
    images[:, :, 8:16, 8:16] = 0
    view = resized_crops(images, torch.tensor([[8.0, 8.0, 8.0, 8.0]]), torch.tensor([False]), 32)
    assert view.max() < 1e-5


def test_boxes_are_distributed_as_torchvision_draws_them() -> None:
    drawn = torch.rand(20_000, 22, generator=_seeded(2))
    boxes = crop_boxes(drawn[:, :20], drawn[:, 20:], 32, 32, 0.2)
    torch.manual_seed(3)
    image = torch.zeros(3, 32, 32)
    theirs = torch.tensor(
        [v2.RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(4_000)]
    ).float()
    for column in range(4):  # top, left, height, width
        for level in (0.1, 0.5, 0.9):
            assert abs(boxes[:, column].quantile(level) - theirs[:, column].quantile(level)) <= 1
    torch.testing.assert_close(boxes.mean(dim=0), theirs.mean(dim=0), atol=0.4, rtol=0)


def test_boxes_stay_inside_and_cover_at_least_the_asked_share() -> None:
    drawn = torch.rand(5_000, 22, generator=_seeded(4))
    top, left, height, width = crop_boxes(drawn[:, :20], drawn[:, 20:], 32, 24, 0.5).unbind(dim=1)
    assert min(top.min(), left.min()) == 0
    assert (top + height).max() == 32 and (left + width).max() == 24
    assert (height * width).min() >= 0.5 * 32 * 24 - 24  # whole pixels: at most half a pixel a side is lost
    ones = torch.full((1, 22), 1 - 2**-24)
    assert crop_boxes(ones[:, :20], ones[:, 20:], 32, 32, 0.2).tolist() == [[0, 0, 32, 32]]


@pytest.mark.parametrize("factor", [0.6, 0.9, 1.3])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_operations_equal_torchvision(name: str, factor: float) -> None:
    images = _images()
    reference = torch.stack([getattr(v2.functional, f"adjust_{name}")(image, factor) for image in images])
    torch.testing.assert_close(_recolor(images, **{name: factor}), reference, atol=2e-6, rtol=0)


def test_grey_equals_torchvision() -> None:
    images = _images()
    reference = v2.functional.rgb_to_grayscale(images, num_output_channels=3)
    torch.testing.assert_close(_recolor(images, grey=1.0), reference, atol=2e-6, rtol=0)


def test_the_folded_matrix_equals_the_operations_one_after_the_other() -> None:
    images = _images(low=0.35, high=0.65)  # so that nothing is clamped in between, where the two differ
    result = _recolor(images, brightness=1.2, contrast=0.7, saturation=1.3)
    reference = v2.functional.adjust_saturation(
        v2.functional.adjust_contrast(v2.functional.adjust_brightness(images, 1.2), 0.7), 1.3
    )
    torch.testing.assert_close(result, reference, atol=3e-6, rtol=0)


def test_hue_turns_as_hsv_does_and_keeps_luma() -> None:
    """Not HSV: at a tenth of a turn the mean difference to torchvision is below 0.04; luma stays, unlike there."""
    images = _images(low=0.3, high=0.7)
    ours = _recolor(images, hue=0.1)
    theirs = torch.stack([v2.functional.adjust_hue(image, 0.1) for image in images])
    back = torch.stack([v2.functional.adjust_hue(image, -0.1) for image in images])
    assert (ours - theirs).abs().mean() < 0.04
    assert (ours - theirs).abs().mean() < 0.5 * (ours - back).abs().mean()
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    torch.testing.assert_close((ours * luma).sum(dim=1), (images * luma).sum(dim=1), atol=1e-3, rtol=0)


def test_a_third_of_a_turn_takes_red_towards_green() -> None:
    red = torch.tensor([0.6, 0.4, 0.4]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    turned = _recolor(red, hue=1 / 3)[0, :, 0, 0].tolist()
    assert abs(colorsys.rgb_to_hsv(*turned)[0] - 1 / 3) < 0.08


def test_neutral_settings_change_nothing() -> None:
    images = _images()
    torch.testing.assert_close(SSLViews(32, **NEUTRAL)(images, _seeded()), images, atol=5e-6, rtol=0)


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_changes_some_images_each_in_its_own_way(option: dict[str, float]) -> None:
    image = _images(1).expand(64, -1, -1, -1)
    views = SSLViews(32, **(NEUTRAL | option))(image, _seeded())
    assert (views - image).abs().amax(dim=(1, 2, 3)).gt(0.01).any()
    assert views.flatten(1).round(decimals=4).unique(dim=0).shape[0] > 1


def test_shares_of_flipped_grey_and_jittered_images() -> None:
    image = _images(1).expand(4_000, -1, -1, -1)[:, :, :8, :8]

    def changed(**option: float) -> float:
        views = SSLViews(8, **(NEUTRAL | option))(image, _seeded(5))
        return (views - image).abs().amax(dim=(1, 2, 3)).gt(1e-4).float().mean().item()

    assert changed(flip=0.5) == pytest.approx(0.5, abs=0.03)
    assert changed(grey=0.2) == pytest.approx(0.2, abs=0.03)
    assert changed(jitter=0.4) == pytest.approx(0.8, abs=0.03)
    assert changed(flip=1.0) == 1.0
    assert changed(solarise=0.2) == pytest.approx(0.2, abs=0.03)
    # Of the widths of 0.1 to 2 px, those below 0.23 px leave so small a picture as it is.
    assert changed(blur=0.5) == pytest.approx(0.5 * (2 - 0.23) / 1.9, abs=0.03)


def test_the_generator_decides_everything() -> None:
    images, views = _images(), SSLViews(32)
    first = views(images, _seeded(1))
    torch.manual_seed(99)
    assert torch.equal(first, views(images, _seeded(1)))
    assert not torch.equal(first, views(images, _seeded(2)))
    one, other = _seeded(1), _seeded(1)
    views(images, one)
    SSLViews(32, **NEUTRAL)(images, other)
    assert torch.equal(one.get_state(), other.get_state())


def test_blur_and_solarisation_leave_what_else_is_drawn_as_it_was() -> None:
    images = _images(64)
    plain, more = SSLViews(32)(images, _seeded(1)), SSLViews(32, blur=0.3, solarise=0.1)(images, _seeded(1))
    same = (plain == more).flatten(1).all(dim=1).float().mean()
    assert 0.45 < same < 0.8  # 0.7 * 0.9 of the views are neither blurred nor solarised


def test_blur_equals_a_slow_weighted_mean() -> None:
    images = _images(3, 6)
    sigma = torch.tensor([0.5, 1.0, 2.0])
    result = blurred(images, sigma, torch.tensor([True, True, False]))
    for number in (0, 1):
        for row in range(6):
            for column in range(6):
                total, value = 0.0, torch.zeros(3)
                for y in range(6):
                    for x in range(6):
                        distance = (row - y) ** 2 + (column - x) ** 2
                        weight = math.exp(-distance / (2 * float(sigma[number]) ** 2))
                        total, value = total + weight, value + weight * images[number, :, y, x]
                torch.testing.assert_close(result[number, :, row, column], value / total, atol=1e-5, rtol=0)
    assert torch.equal(result[2], images[2])


def test_blur_equals_torchvision_away_from_the_rim() -> None:
    images = _images(2)
    reference = v2.functional.gaussian_blur(images, kernel_size=[13, 13], sigma=[1.2, 1.2])
    result = blurred(images, torch.full((2,), 1.2), torch.ones(2, dtype=torch.bool))
    torch.testing.assert_close(result[..., 8:-8, 8:-8], reference[..., 8:-8, 8:-8], atol=1e-4, rtol=0)
    assert result.min() >= images.min() and result.max() <= images.max() + 1e-6


def test_solarisation_equals_torchvision() -> None:
    images = _images()
    chosen = torch.arange(16) % 2 == 0
    result = solarised(images, chosen)
    torch.testing.assert_close(result[chosen], v2.functional.solarize(images[chosen], 0.5))
    assert torch.equal(result[~chosen], images[~chosen])


def test_cutmix_pastes_the_partners_box_and_counts_its_pixels() -> None:
    images = _images(16)
    before = images.clone()
    weights = []
    for seed in range(200):
        mixed, partner, weight = cutmix(images, _seeded(seed))
        assert sorted(partner.tolist()) == list(range(16))
        foreign = (mixed != images).any(dim=1)[partner != torch.arange(16)]
        assert torch.equal(foreign, foreign[:1].expand_as(foreign))  # one box for the whole batch
        assert float(foreign[0].float().mean()) == pytest.approx(1 - weight, abs=1e-6)
        rows, columns = foreign[0].any(dim=1), foreign[0].any(dim=0)
        assert torch.equal(foreign[0], rows[:, None] & columns)  # a rectangle
        assert torch.equal(mixed[:, :, rows][..., columns], images[partner][:, :, rows][..., columns])
        weights.append(weight)
    assert 0.45 < min(weights) < 0.55 and max(weights) > 0.97
    assert torch.equal(images, before)
    assert torch.equal(cutmix(images, _seeded(3))[0], cutmix(images, _seeded(3))[0])


def test_views_stay_in_range_leave_the_images_alone_and_keep_their_type() -> None:
    images = _images(64)
    before = images.clone()
    views = SSLViews(24, jitter=1.0, blur=0.5, solarise=0.5)(images, _seeded())
    assert views.shape == (64, 3, 24, 24) and views.min() >= 0 and views.max() <= 1 and views.isfinite().all()
    assert torch.equal(images, before)
    half = SSLViews(32)(images.bfloat16(), _seeded())
    assert half.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = SSLViews(32, blur=0.5)(images, _seeded())
    torch.testing.assert_close(under_autocast, SSLViews(32, blur=0.5)(images, _seeded()), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "option", [{"min_scale": 0.0}, {"jitter": -0.1}, {"grey": 1.5}, {"flip": math.nan}, {"blur": 2.0}]
)
def test_values_out_of_range_are_refused(option: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(option))):
        SSLViews(32, **option)
    with pytest.raises(ConfigError, match="image size"):
        SSLViews(0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_views_on_a_gpu_equal_those_on_the_cpu() -> None:
    images, views = _images(64), SSLViews(32)
    torch.testing.assert_close(views(images.cuda(), _seeded()).cpu(), views(images, _seeded()), atol=1e-4, rtol=0)
