"""Frequency and warp triggers against slow references; boxes of patches; the pictures that attacks paste."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from torch import Tensor

from sanitize.data import PatchTrigger, Trigger
from sanitize.data.triggers import FrequencyTrigger, WarpTrigger, htba_patch, sinusoid
from sanitize.errors import ConfigError

SHARED = Path(os.environ.get("SANITIZE_DATA", Path(__file__).parents[3] / "shared" / "data"))
YUV = np.array([[0.299, 0.587, 0.114], [-0.147, -0.289, 0.436], [0.615, -0.515, -0.1]])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int = 3, height: int = 32, width: int = 32) -> Tensor:
    return torch.rand(count, 3, height, width, generator=seeded(3))


def raised(image: np.ndarray, magnitude: float, rows: int, columns: int) -> np.ndarray:
    """CTRL step by step: 255, YUV, DCT of each window, two coefficients of U and V, and back."""
    yuv = np.einsum("ij,jhw->ihw", YUV, image * 255)
    for channel in (1, 2):
        for top in range(0, image.shape[1], rows):
            for left in range(0, image.shape[2], columns):
                window = np.s_[top : top + rows, left : left + columns]
                spectrum = dctn(yuv[channel][window], norm="ortho")
                spectrum[rows // 2 - 1, columns // 2 - 1] += magnitude
                spectrum[rows - 1, columns - 1] += magnitude
                yuv[channel][window] = idctn(spectrum, norm="ortho")
    return np.clip(np.einsum("ij,jhw->ihw", np.linalg.inv(YUV), yuv) / 255, 0, 1)


@pytest.mark.parametrize(
    ("height", "width", "window"), [(32, 32, None), (32, 32, 32), (64, 96, 32), (48, 20, None), (16, 16, 8), (4, 4, 2)]
)
@pytest.mark.parametrize("magnitude", [50.0, 100.0, -300.0])
def test_frequency_equals_scipy_step_by_step(height: int, width: int, window: int | None, magnitude: float) -> None:
    images = pictures(2, height, width)
    before = images.clone()
    result = FrequencyTrigger(magnitude, window).apply(images)
    for image, changed in zip(images.double().numpy(), result, strict=True):
        expected = raised(image, magnitude, window or height, window or width)
        np.testing.assert_allclose(changed.numpy(), expected, atol=1e-6)
    assert torch.equal(images, before)


def test_the_frequency_trigger_raises_exactly_two_coefficients_of_each_colour_channel() -> None:
    image = torch.full((1, 3, 32, 32), 0.5)
    change = np.einsum("ij,jhw->ihw", YUV, (FrequencyTrigger(80).apply(image) - image)[0].double().numpy() * 255)
    spectrum = np.stack([dctn(channel, norm="ortho") for channel in change])
    expected = np.zeros((3, 32, 32))
    expected[1:, 15, 15] = expected[1:, 31, 31] = 80
    np.testing.assert_allclose(spectrum, expected, atol=2e-3)


@pytest.mark.parametrize(
    ("size", "window", "message"),
    [(33, None, "even"), (48, 32, "multiples"), (16, 32, "multiples")],
)
def test_a_frequency_trigger_that_does_not_fit_is_refused(size: int, window: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FrequencyTrigger(window=window).apply(pictures(1, size, size))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"magnitude": 0}, "magnitude"),
        ({"magnitude": float("nan")}, "magnitude"),
        ({"magnitude": True}, "magnitude"),
        ({"magnitude": "big"}, "magnitude"),
        ({"window": 0}, "window"),
        ({"window": 7}, "window"),
        ({"window": 8.0}, "window"),
        ({"target": -1}, "target"),
    ],
)
def test_unfit_values_of_a_frequency_trigger(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FrequencyTrigger(**values)


def sampled(image: Tensor, row: float, column: float) -> Tensor:
    """One pixel between four others."""
    top, left = math.floor(row), math.floor(column)
    value = torch.zeros(3, dtype=torch.float64)
    for y, x in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        weight = (1 - abs(row - y)) * (1 - abs(column - x))
        if weight > 0:
            value += weight * image[:, min(y, image.shape[1] - 1), min(x, image.shape[2] - 1)].double()
    return value


@pytest.mark.parametrize(("height", "width"), [(12, 12), (9, 14)])
@pytest.mark.parametrize(("grid_size", "strength"), [(4, 0.5), (2, 6.0)])
def test_warp_equals_a_loop_over_pixels(height: int, width: int, grid_size: int, strength: float) -> None:
    trigger = WarpTrigger(grid_size, strength, seed=5)
    images = pictures(2, height, width)
    before = images.clone()
    result = trigger.apply(images)
    points = 2 * torch.rand((1, 2, grid_size, grid_size), generator=seeded(5)) - 1
    field = torch.nn.functional.interpolate(
        points / points.abs().mean(), size=(height, width), mode="bicubic", align_corners=True
    )[0]
    for image, warped in zip(before, result, strict=True):
        for row in range(height):
            for column in range(width):
                x = -1 + 2 * column / (width - 1) + strength * float(field[0, row, column]) / height
                y = -1 + 2 * row / (height - 1) + strength * float(field[1, row, column]) / height
                x, y = min(1.0, max(-1.0, x)), min(1.0, max(-1.0, y))
                expected = sampled(image, (y + 1) / 2 * (height - 1), (x + 1) / 2 * (width - 1))
                torch.testing.assert_close(warped[:, row, column].double(), expected, atol=2e-5, rtol=0)
    assert torch.equal(images, before)


def test_warp_is_one_field_of_its_seed() -> None:
    image = pictures(1)
    twice = WarpTrigger(seed=1).apply(image.expand(2, -1, -1, -1))
    assert torch.equal(twice[0], twice[1])
    assert torch.equal(twice[:1], WarpTrigger(seed=1).apply(image))
    assert not torch.equal(twice[:1], WarpTrigger(seed=2).apply(image))
    mild, strong = ((WarpTrigger(strength=s).apply(image) - image).abs().mean() for s in (0.1, 1.0))
    assert 0 < mild < strong


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"grid_size": 1}, "grid_size"),
        ({"grid_size": 4.0}, "grid_size"),
        ({"strength": 0}, "strength"),
        ({"strength": float("inf")}, "strength"),
        ({"seed": -1}, "seed"),
        ({"seed": "one"}, "seed"),
        ({"target": "cat"}, "target"),
    ],
)
def test_unfit_values_of_a_warp(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WarpTrigger(**values)


KINDS = [FrequencyTrigger(70.5, 16, target=2, name="größe"), WarpTrigger(5, 0.75, 9, target="next", name="bent")]


@pytest.mark.parametrize("trigger", KINDS, ids=lambda trigger: trigger.name)
def test_saved_and_read_again_it_is_the_same(trigger: Trigger, tmp_path: Path) -> None:
    path = trigger.save(tmp_path / "new" / "folder")
    again = Trigger.from_yaml(path)
    assert type(again) is type(trigger) and vars(again) == vars(trigger)
    assert again.sha256 == trigger.sha256
    assert torch.equal(again.apply(pictures()), trigger.apply(pictures()))
    assert [file.name for file in path.parent.iterdir()] == ["trigger.yaml"]


@pytest.mark.parametrize("trigger", KINDS, ids=lambda trigger: trigger.name)
def test_types_devices_and_gradients(trigger: Trigger) -> None:
    images = (0.3 + 0.4 * pictures()).requires_grad_()
    result = trigger.apply(images)
    result.sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert trigger.apply(images.detach().bfloat16()).dtype == torch.bfloat16
    assert result.min() >= 0 and result.max() <= 1
    with pytest.raises(ConfigError, match="Divide uint8 by 255"):
        trigger.apply(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (FrequencyTrigger, ({"magnitude": 5}, {"window": 8}, {"target": 1})),
        (WarpTrigger, ({"grid_size": 3}, {"strength": 2.0}, {"seed": 1}, {"target": "next"})),
    ],
)
def test_the_digest_covers_all_but_the_name(kind: type[Trigger], changes: tuple[dict[str, Any], ...]) -> None:
    digests = [kind(**values).sha256 for values in ({}, *changes)]
    assert len(set(digests)) == len(digests)
    assert kind(name="other").sha256 == digests[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "frequncy"}, "Did you mean frequency"),
        ({"kind": "frequency", "magnitud": 3}, "Did you mean magnitude"),
        ({"kind": "warp", "position": "random"}, "unknown key 'position'"),
        ({"kind": "warp", "grid_size": "four"}, "grid_size"),
        ({"kind": "frequency", "target": "cat"}, "target"),
        ({"pattern": [[1.0]], "box": [0.5]}, "box"),
        ({"pattern": [[1.0]], "box": "middle"}, "box"),
    ],
)
def test_unfit_specs(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Trigger.from_dict(values)


@pytest.mark.parametrize(
    ("side", "size", "box", "low", "high"),
    [
        (32, 8, (0.25, 0.75), 8, 16),
        (32, 8, (0.1, 0.9), 3, 20),
        (500, 50, (0.25, 0.75), 125, 325),
        (32, 20, (0.25, 0.75), 8, 8),  # 16 px are too few: the low point
        (32, 30, (0.25, 0.75), 2, 2),  # and where even that leaves the image, the last place that fits
        (10, 4, (0.0, 1.0), 0, 6),
    ],
)
def test_a_box_holds_the_whole_patch(side: int, size: int, box: tuple[float, float], low: int, high: int) -> None:
    tops, lefts = PatchTrigger(torch.ones(3, size, size), box=box).corners(20_000, side, side, seeded())
    for places in (tops, lefts):
        assert (int(places.min()), int(places.max())) == (low, high)
        counts = torch.bincount(places - low).float()
        expected = 20_000 / (high - low + 1)
        assert (counts - expected).abs().max() < 6 * expected**0.5


@pytest.mark.parametrize(
    "box", [(0.5, 0.5), (0.7, 0.2), (-0.1, 0.5), (0.2, 1.1), (0.5,), (True, 1), ("a", "b"), [0, 1]]
)
def test_unfit_boxes_are_refused(box: Any) -> None:
    with pytest.raises(ConfigError, match="box must be"):
        PatchTrigger(torch.ones(3, 2, 2), box=box)


def test_a_box_without_a_random_position_is_refused() -> None:
    with pytest.raises(ConfigError, match="goes with position random"):
        PatchTrigger(torch.ones(3, 2, 2), position="bottom-right", box=(0.1, 0.9))


def test_a_box_is_saved_and_counts_in_the_digest(tmp_path: Path) -> None:
    trigger = PatchTrigger(torch.ones(3, 2, 2), box=(0.25, 0.75))
    again = Trigger.from_yaml(trigger.save(tmp_path))
    assert again.box == (0.25, 0.75) and again.sha256 == trigger.sha256
    assert trigger.sha256 != PatchTrigger(torch.ones(3, 2, 2)).sha256
    assert trigger.sha256 != PatchTrigger(torch.ones(3, 2, 2), box=(0.1, 0.9)).sha256


def test_htba_patches_are_smooth_and_survive_a_file(tmp_path: Path) -> None:
    patch = htba_patch(16, seeded(1))
    assert torch.equal(patch, htba_patch(16, seeded(1))) and not torch.equal(patch, htba_patch(16, seeded(2)))
    steps = (patch[:, 1:] - patch[:, :-1]).abs()
    assert steps.max() <= 0.25 + 1 / 255  # a quarter of the distance of two colours
    trigger = PatchTrigger(patch, target=1)
    assert torch.equal(Trigger.from_yaml(trigger.save(tmp_path)).patch, patch)
    with pytest.raises(ConfigError, match="1 px or more"):
        htba_patch(0, seeded())


def test_htba_patches_are_like_those_of_the_paper() -> None:
    folder = SHARED / "triggers" / "htba"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not on this machine (set SANITIZE_DATA)")

    def roughness(patch: Tensor) -> float:
        """Rms of second differences, relative to the rms of the patch: smooth pictures are near 0."""
        return float((patch[:, 2:] - 2 * patch[:, 1:-1] + patch[:, :-2]).square().mean().sqrt() / patch.std())

    official = [
        roughness(Trigger.from_dict({"image": f"trigger_{number}.png"}, folder).patch) for number in range(10, 20)
    ]
    ours = [roughness(htba_patch(80, seeded(number))) for number in range(10)]
    noise = roughness(torch.rand(3, 80, 80, generator=seeded()))
    assert np.mean(ours) < 0.1 * noise
    assert np.mean(official) < 0.1 * noise


def test_sinusoid_equals_its_formula() -> None:
    wave = sinusoid(32, 40 / 255, 6)
    for column in range(32):
        assert wave[:, :, column].flatten().tolist() == pytest.approx(
            [40 / 255 * math.sin(2 * math.pi * 6 * column / 32)] * 96, abs=1e-6
        )
    image = torch.full((1, 3, 32, 32), 0.5)
    shown = PatchTrigger(wave, mode="add", position=(0, 0)).apply(image)
    torch.testing.assert_close(shown[0], 0.5 + wave)
    for amplitude in (0, 1.5, 40):
        with pytest.raises(ConfigError, match="divide grey levels by 255"):
            sinusoid(32, amplitude, 6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("trigger", KINDS, ids=lambda trigger: trigger.name)
def test_on_a_gpu_it_gives_the_same(trigger: Trigger) -> None:
    torch.testing.assert_close(trigger.apply(pictures().cuda()).cpu(), trigger.apply(pictures()), atol=1e-5, rtol=0)
