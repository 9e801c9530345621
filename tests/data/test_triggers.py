from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sanitize.data import PatchTrigger, Trigger
from sanitize.errors import ConfigError

SHARED = Path(os.environ.get("SANITIZE_DATA", Path(__file__).parents[3] / "shared" / "data"))


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images(count: int = 8, height: int = 12, width: int = 10) -> Tensor:
    return torch.rand(count, 3, height, width, generator=_seeded(3))


def _patch(height: int = 4, width: int = 3) -> Tensor:
    return torch.rand(3, height, width, generator=_seeded(4))


def _reference(trigger: Trigger, images: Tensor, generator: torch.Generator | None) -> Tensor:
    """One image at a time, pixel by pixel."""
    output = images.clone()
    tops, lefts = trigger.corners(len(images), images.shape[-2], images.shape[-1], generator)
    for image, top, left in zip(output, tops.tolist(), lefts.tolist(), strict=True):
        for row in range(trigger.size[0]):
            for column in range(trigger.size[1]):
                weight = trigger.alpha * (1.0 if trigger.mask is None else float(trigger.mask[0, row, column]))
                old, new = image[:, top + row, left + column].clone(), trigger.patch[:, row, column]
                mixed = old + weight * new if trigger.mode == "add" else (1 - weight) * old + weight * new
                image[:, top + row, left + column] = mixed.clamp(0, 1)
    return output


@pytest.mark.parametrize("position", [(0, 0), (8, 7), (3, 2), "bottom-right", "random"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("mode", "alpha"), [("replace", 1.0), ("blend", 0.3), ("add", 0.7)])
def test_apply_equals_a_loop_over_pixels(mode: Any, alpha: float, masked: bool, position: Any) -> None:
    mask = torch.rand(1, 4, 3, generator=_seeded(5)) if masked else None
    trigger = PatchTrigger(_patch(), mask, mode, alpha, position)
    images = _images()
    before = images.clone()
    result = trigger.apply(images, _seeded(1))
    torch.testing.assert_close(result, _reference(trigger, before, _seeded(1)), atol=1e-6, rtol=0)
    assert torch.equal(images, before)


def test_random_positions_reach_every_place_and_are_uniform() -> None:
    trigger = PatchTrigger(_patch(4, 3))
    tops, lefts = trigger.corners(90_000, 12, 10, _seeded())
    counts = torch.bincount(tops * 8 + lefts, minlength=72).float()
    assert (tops.min(), tops.max(), lefts.min(), lefts.max()) == (0, 8, 0, 7)
    assert (counts - 1250).abs().max() < 6 * 1250**0.5


def test_positions_repeat_without_a_generator_and_follow_a_given_one() -> None:
    trigger, images = PatchTrigger(_patch()), _images(32)
    assert torch.equal(trigger.apply(images), trigger.apply(images))
    assert torch.equal(trigger.apply(images), trigger.apply(images, _seeded(0)))
    assert not torch.equal(trigger.apply(images, _seeded(1)), trigger.apply(images, _seeded(2)))
    generator = _seeded(1)
    assert not torch.equal(trigger.apply(images, generator), trigger.apply(images, generator))


def test_a_picture_of_image_size_is_blended_over_all_of_it() -> None:
    picture, images = _images(1)[0], _images()
    result = PatchTrigger(picture, mode="blend", alpha=0.2).apply(images)
    torch.testing.assert_close(result, 0.8 * images + 0.2 * picture)


def test_add_is_clamped_and_takes_negative_values() -> None:
    images = torch.full((2, 3, 4, 4), 0.5)
    patch = torch.stack((torch.ones(4, 4), -torch.ones(4, 4), torch.zeros(4, 4)))
    result = PatchTrigger(patch, mode="add", alpha=0.8).apply(images)
    assert result[0, :, 0, 0].tolist() == [1.0, 0.0, 0.5]


def test_gradients_pass_beside_the_patch_only() -> None:
    images = _images(2).requires_grad_()
    PatchTrigger(_patch(), position=(0, 0)).apply(images).sum().backward()
    assert images.grad[:, :, :4, :3].abs().max() == 0
    assert images.grad[:, :, 4:].eq(1).all()


def test_types_follow_the_images() -> None:
    assert PatchTrigger(_patch()).apply(_images().bfloat16()).dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="Divide uint8 by 255"):
        PatchTrigger(_patch()).apply(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_a_trigger_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="4x3 px and does not fit on images of 3x10 px"):
        PatchTrigger(_patch()).apply(_images(1, 3, 10))
    with pytest.raises(ConfigError, match=r"\[8, 7\] is the last place"):
        PatchTrigger(_patch(), position=(9, 0)).apply(_images())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"patch": torch.zeros(1, 2, 2)}, "3, h, w"),
        ({"patch": torch.full((3, 2, 2), -0.1)}, r"\[0, 1\]"),
        ({"patch": torch.full((3, 2, 2), float("nan"))}, r"\[0, 1\]"),
        ({"patch": torch.full((3, 2, 2), -1.1), "mode": "add"}, r"\[-1, 1\]"),
        ({"mask": torch.zeros(1, 3, 2)}, "size of the patch"),
        ({"mask": torch.full((1, 2, 2), 2.0)}, "mask"),
        ({"mode": "blnd"}, "Did you mean blend"),
        ({"mode": "blend"}, "alpha below 1"),
        ({"alpha": 0}, "alpha"),
        ({"alpha": 1.5}, "alpha"),
        ({"alpha": True}, "alpha"),
        ({"position": "bottom"}, "position"),
        ({"position": (-1, 0)}, "position"),
        ({"position": (1.5, 0)}, "position"),
        ({"target": -1}, "target"),
        ({"target": "cat"}, "target"),
    ],
)
def test_unfit_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PatchTrigger(**({"patch": torch.zeros(3, 2, 2)} | values))


def _png(path: Path, pixels: np.ndarray) -> str:
    Image.fromarray(pixels).save(path)
    return path.name


def test_a_spec_with_pictures(tmp_path: Path) -> None:
    colours = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5
    _png(tmp_path / "patch.png", colours)
    _png(tmp_path / "mask.png", np.eye(4, dtype=np.uint8) * 255)
    (tmp_path / "corner.yaml").write_text(
        "image: patch.png\nmask: mask.png\nmode: blend\nalpha: 0.5\nposition: [1, 2]\ntarget: 3\n"
    )
    trigger = Trigger.from_yaml(tmp_path / "corner.yaml")
    assert (trigger.name, trigger.mode, trigger.alpha, trigger.position) == ("corner", "blend", 0.5, (1, 2))
    assert trigger.target == 3
    assert torch.equal((trigger.patch * 255).round().byte(), torch.from_numpy(colours).permute(2, 0, 1))
    assert torch.equal(trigger.mask[0], torch.eye(4))


def test_transparency_of_the_picture_is_the_mask(tmp_path: Path) -> None:
    pixels = np.full((3, 3, 4), 200, dtype=np.uint8)
    pixels[..., 3] = np.eye(3) * 255
    _png(tmp_path / "patch.png", pixels)
    trigger = Trigger.from_dict({"image": "patch.png"}, tmp_path)
    assert torch.equal(trigger.mask[0], torch.eye(3))
    assert trigger.patch.unique().tolist() == [pytest.approx(200 / 255)]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ([[[1, 0, 0], [0, 1, 0]]], torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[0.0, 0.0]]])),
        ([[0.5, 1.0]], torch.tensor([[0.5, 1.0]]).expand(3, 1, 2)),
        ({"height": 2, "width": 1, "color": [1, 0, 0.5]}, torch.tensor([1, 0, 0.5]).view(3, 1, 1).expand(3, 2, 1)),
        ({"height": 2, "width": 1, "color": 0.5}, torch.full((3, 2, 1), 0.5)),
        ({"height": 2, "width": 1, "seed": 4}, torch.rand(3, 2, 1, generator=torch.Generator().manual_seed(4))),
    ],
)
def test_patterns(pattern: Any, expected: Tensor) -> None:
    assert torch.equal(Trigger.from_dict({"pattern": pattern}).patch, expected)


def test_size_scales_patch_and_mask(tmp_path: Path) -> None:
    _png(tmp_path / "patch.png", np.full((80, 40, 3), 255, dtype=np.uint8))
    _png(tmp_path / "mask.png", np.full((80, 40), 255, dtype=np.uint8))
    spec = {"image": "patch.png", "mask": "mask.png"}
    assert Trigger.from_dict(spec | {"size": 10}, tmp_path).size == (20, 10)
    scaled = Trigger.from_dict(spec | {"size": [6, 5]}, tmp_path)
    assert scaled.size == (6, 5) and scaled.mask.shape == (1, 6, 5)
    torch.testing.assert_close(scaled.patch, torch.ones(3, 6, 5))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pattern": [[1.0]], "postion": "random"}, "unknown key 'postion'.*Did you mean position"),
        ({}, "either `image`"),
        ({"image": "a.png", "pattern": [[1.0]]}, "either `image`"),
        ({"image": "missing.png"}, "there is no file"),
        ({"image": "text.png"}, "not a picture"),
        ({"image": 3}, "file name"),
        ({"pattern": [[1.0], [1.0, 2.0]]}, "rows of pixels"),
        ({"pattern": "white"}, "rows of pixels"),
        ({"pattern": []}, "rows of pixels"),
        ({"pattern": [[[1, 2]]]}, "rows of pixels"),
        ({"pattern": {"height": 2, "width": 2}}, "rows of pixels"),
        ({"pattern": {"height": 99999, "width": 2, "color": 1}}, "4096"),
        ({"pattern": [[3.0]]}, r"in \[0, 1\]"),
        ({"pattern": [[1.0]], "size": 0}, "size of trigger"),
        ({"pattern": [[1.0]], "size": "big"}, "size of trigger"),
        ({"pattern": [[1.0]], "mask": [[1.0, 1.0]]}, "size of the patch"),
        ({"pattern": [[1.0]], "position": [1, 2, 3]}, "position"),
        ({"pattern": [[1.0]], "alpha": "half"}, "alpha"),
        ({"pattern": [[1.0]], "mode": ["add"]}, "unknown mode"),
    ],
)
def test_unfit_specs_are_refused(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ConfigError, match=message):
        Trigger.from_dict(values, tmp_path)


@pytest.mark.parametrize("text", ["- a list\n", "image: [unclosed\n", "!!python/object/apply:os.system ['true']\n", ""])
def test_unreadable_yaml_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "trigger.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="trigger"):
        Trigger.from_yaml(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        Trigger.from_yaml(tmp_path / "none.yaml")


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("position", [(1, 2), "random", "bottom-right"])
def test_save_and_read_again(masked: bool, position: Any, tmp_path: Path) -> None:
    mask = torch.rand(1, 4, 3, generator=_seeded(6)) if masked else None
    trigger = PatchTrigger(_patch(), mask, "blend", 0.25, position, target=2, name="größe")
    path = trigger.save(tmp_path / "new" / "folder")
    again = Trigger.from_yaml(path)
    assert (again.mode, again.alpha, again.position, again.target, again.name) == (
        *("blend", 0.25, position),
        *(2, "größe"),
    )
    torch.testing.assert_close(again.patch, trigger.patch, atol=1 / 510 + 1e-6, rtol=0)
    if masked:
        torch.testing.assert_close(again.mask, mask, atol=1 / 510 + 1e-6, rtol=0)
    else:
        assert again.mask is None
    again.save(tmp_path / "second")
    assert torch.equal(Trigger.from_yaml(tmp_path / "second" / "trigger.yaml").patch, again.patch)
    names = {"trigger.yaml", "trigger.png"} | ({"mask.png"} if masked else set())
    assert {file.name for file in path.parent.iterdir()} == names


def test_negative_patches_are_saved_exactly(tmp_path: Path) -> None:
    trigger = PatchTrigger(_patch() - 0.5, mode="add")
    again = Trigger.from_yaml(trigger.save(tmp_path))
    assert torch.equal(again.patch, trigger.patch)
    assert not list(tmp_path.glob("*.png"))
    assert again.target is None


def test_the_shared_trigger_of_the_badnets_suspect() -> None:
    path = SHARED.parent / "suspects" / "badnets-cifar10" / "trigger.yaml"
    if not path.is_file():
        pytest.skip(f"{path} is not on this machine (set SANITIZE_DATA)")
    trigger = Trigger.from_yaml(path)
    assert (trigger.name, trigger.target, trigger.size) == ("badnets-cifar10", 8, (4, 4))
    image = trigger.apply(torch.zeros(1, 3, 32, 32))[0]
    assert image[:, 27:31, 27:31].eq(1).all() and image.sum() == 48


def test_shared_pictures_of_triggers(tmp_path: Path) -> None:
    folder = SHARED / "triggers"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not on this machine (set SANITIZE_DATA)")
    patches = {"image": "badnet_patch_32.png", "mask": "mask_badnet_patch_32.png", "position": [0, 0]}
    trigger = Trigger.from_dict(patches, folder / "patches")
    changed = trigger.apply(torch.full((1, 3, 32, 32), 0.5)).ne(0.5).any(dim=1)
    assert 0 < changed.sum() < 64
    blend = Trigger.from_dict(
        {"image": "hellokitty_224.png", "mode": "blend", "alpha": 0.2, "size": 32}, folder / "patches"
    )
    assert blend.apply(torch.rand(2, 3, 32, 32)).shape == (2, 3, 32, 32)
    htba = Trigger.from_dict({"image": "trigger_10.png", "size": 50}, folder / "htba")
    assert htba.size == (50, 50)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_with_a_cpu_generator_it_gives_the_same() -> None:
    trigger, images = PatchTrigger(_patch(), mode="blend", alpha=0.4), _images(16)
    torch.testing.assert_close(trigger.apply(images.cuda(), _seeded()).cpu(), trigger.apply(images, _seeded()))
