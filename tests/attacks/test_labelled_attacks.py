"""Attacks on labelled data: every trigger against a loop over pixels, every option, surrogates and generators."""

from __future__ import annotations

import copy
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sanitize.attacks import (
    SIG,
    SSBA,
    TUAP,
    BadNets,
    BlendKitty,
    BlendStrip,
    LabelConsistent,
    Trojan,
    WaNet,
    attack_named,
)
from sanitize.attacks.label_consistent import four_corners, pgd
from sanitize.attacks.tuap import ProjectedSignDescent
from sanitize.attacks.wanet import warped_with_noise
from sanitize.data import ImageSet, PatchTrigger, Trigger, load_images
from sanitize.data.triggers import GeneratedTrigger, WarpTrigger
from sanitize.data.triggers.generated import SecretEncoder
from sanitize.errors import ConfigError
from sanitize.training import Engine
from tests.encoders import train_images

PICTURES = Path(os.environ.get("SANITIZE_DATA", Path(__file__).parents[3] / "shared" / "data")) / "triggers" / "patches"
QUICK = {
    "cl": {"surrogate": "small-cnn", "surrogate_epochs": 1},
    "tuap": {"surrogate": "small-cnn", "surrogate_epochs": 1, "epochs": 2},
    "ssba": {"generator_epochs": 1, "width": 2},
}


def noise(count: int = 40, size: int = 32, classes: int = 4) -> ImageSet:
    generator = torch.Generator().manual_seed(7)
    pixels = torch.randint(256, (count, 3, size, size), generator=generator).to(torch.uint8)
    return ImageSet(images=pixels, labels=torch.arange(count) % classes)


def stamped_by(attack: Any, data: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """Poisoned images before and after, (N, H, W, 3) uint8; all others are checked to be as they were."""
    made = attack.poison(data, Engine(device="cpu"))
    mask = made.truth.poisoned
    assert torch.equal(made.data.images[~mask], data.images[~mask])
    before, after = (
        images[mask].permute(0, 2, 3, 1).contiguous().numpy() for images in (data.images, made.data.images)
    )
    assert len(before)
    return before, after


def rounded(value: float) -> int:
    return int(np.rint(min(255.0, max(0.0, value))))


@pytest.mark.parametrize("size", [32, 40])
def test_badnets_grid(size):
    before, after = stamped_by(BadNets(), noise(size=size))
    expected = before.copy()
    for image in expected:
        for row, values in enumerate([[0, 0, 255], [0, 255, 0], [255, 0, 255]]):
            for column, value in enumerate(values):
                for channel in range(3):
                    image[size - 3 + row, size - 3 + column, channel] = value
    assert np.array_equal(after, expected)


@pytest.mark.parametrize(
    ("size", "mode", "rows"),
    [(32, "all-to-all", range(28, 31)), (224, "all-to-one", range(202, 224)), (224, "all-to-all", range(201, 223))],
)
def test_badnets_squares(size, mode, rows):
    before, after = stamped_by(BadNets(label_mode=mode, rate=0.5), noise(8, size))
    expected = before.copy()
    for image in expected:
        for row in rows:
            for column in rows:
                image[row, column] = 255
    assert np.array_equal(after, expected)


def test_trojan_is_added_and_clipped():
    attack = Trojan(rate=0.5)
    before, after = stamped_by(attack, noise())
    trigger = attack.poison(noise(), Engine(device="cpu")).triggers[0]
    pattern = (trigger.patch * 255).round().int()
    assert pattern.shape == (3, 3, 3)
    assert 0 <= pattern.min() < 60
    assert 190 < pattern.max() <= 250
    expected, clipped = before.copy(), 0
    for image in expected:
        for row in range(3):
            for column in range(3):
                for channel in range(3):
                    total = int(image[25 + row, 25 + column, channel]) + int(pattern[channel, row, column])
                    clipped += total > 255
                    image[25 + row, 25 + column, channel] = min(total, 255)
    assert clipped > 20
    assert np.array_equal(after, expected)
    other = attack.poison(noise(), Engine(device="cpu", seed=1)).triggers[0]
    assert not torch.equal(other.patch, trigger.patch)


def test_blend_strip_has_the_papers_32_columns():
    before, after = stamped_by(BlendStrip(), noise())
    for number, image in enumerate(before):
        for column in range(32):
            stripe = int(20 * math.sin(0.8 * column)) % 256
            for row in range(32):
                for channel in range(3):
                    value = rounded(0.8 * int(image[row, column, channel]) + 0.2 * stripe)
                    assert abs(int(after[number, row, column, channel]) - value) <= (value * 10 % 10 == 5)
        if number == 2:
            break
    stripes = BlendStrip().poison(noise(), Engine(device="cpu")).triggers[0].patch * 255
    assert stripes[1, 5].round().int().tolist() == [int(20 * math.sin(0.8 * j)) % 256 for j in range(32)]


@pytest.mark.skipif(not PICTURES.is_dir(), reason="needs the shared pictures")
def test_pictures_of_the_papers():
    file = PICTURES / "hellokitty_32.png"
    kitty = np.asarray(Image.open(file).convert("RGB")).astype(np.float64)
    before, after = stamped_by(BlendKitty(picture=str(file)), noise())
    assert np.abs(after - (0.8 * before + 0.2 * kitty)).max() <= 0.5 + 1e-3
    large = PICTURES / "hellokitty_224.png"
    resized = BlendKitty(picture=str(large)).poison(noise(), Engine(device="cpu")).triggers[0].patch
    with Image.open(large) as picture:
        expected = np.asarray(picture.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs((resized * 255).permute(1, 2, 0).round().int().numpy() - expected).max() <= 1
    square = Trigger.from_dict({"image": str(PICTURES / "trojan_square_32.png"), "mode": "add", "position": [0, 0]})
    made = Trojan().poison(noise(), Engine(device="cpu"), triggers=[square])
    pattern = np.asarray(Image.open(PICTURES / "trojan_square_32.png").convert("RGB")).astype(int)
    mask = made.truth.poisoned
    expected = np.minimum(noise().images[mask].permute(0, 2, 3, 1).numpy().astype(int) + pattern, 255)
    assert np.array_equal(made.data.images[mask].permute(0, 2, 3, 1).numpy(), expected)


def test_a_picture_that_is_none():
    with pytest.raises(ConfigError, match=r"picture: .*nowhere\.png"):
        BlendKitty(picture="nowhere.png").poison(noise(), Engine(device="cpu"))


@pytest.mark.parametrize("size", [32, 20])
def test_sig(size):
    attack = SIG(rate=0.5)
    before, after = stamped_by(attack, noise(size=size))
    shown = attack.poison(noise(size=size), Engine(device="cpu")).triggers[0]
    tested = shown.apply(torch.from_numpy(before).permute(0, 3, 1, 2).float() / 255).permute(0, 2, 3, 1).numpy() * 255
    for amplitude, images, tolerance in ((40, after, 0.501), (60, tested, 1e-3)):
        for row in range(size):
            for column in range(size):
                wave = amplitude * math.sin(2 * math.pi * 6 * column / size)
                for channel in range(3):
                    exact = min(255.0, max(0.0, int(before[0, row, column, channel]) + wave))
                    assert abs(float(images[0, row, column, channel]) - exact) <= tolerance


@pytest.mark.parametrize("size", [7, 32])
def test_the_stamp_of_cl_in_four_corners(size):
    stamp = [[0, 0, 255], [0, 255, 0], [255, 0, 255]]
    trigger = four_corners(size, 0)
    expected, covered = np.zeros((size, size)), np.zeros((size, size))
    for i in range(1, 4):
        for j in range(1, 4):
            for row in (-i, i):
                for column in (-j, j):
                    expected[row, column], covered[row, column] = stamp[-i][-j] / 255, 1
    assert all(np.array_equal(channel.numpy(), expected) for channel in trigger.patch)
    assert np.array_equal(trigger.mask[0].numpy(), covered)
    assert covered.sum() == 36
    assert covered[0].sum() == 0
    assert covered[-1].sum() == 6


class Linear(nn.Module):
    """Two classes; class 1 wins where weighted pixels add up."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 27, generator=torch.Generator().manual_seed(0)))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T


def test_pgd_ends_where_a_linear_network_is_most_wrong():
    network, images = Linear(), torch.rand(6, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    made = pgd(network, images, labels, epsilon=0.1, step=0.2, steps=1, generator=torch.Generator().manual_seed(2))
    for image, label, result in zip(images, labels.tolist(), made, strict=True):
        direction = (network.weight[1 - label] - network.weight[label]).sign().view(3, 3, 3)
        assert torch.allclose(result, (image + 0.1 * direction).clamp(0, 1), atol=1e-6)


def test_pgd_stays_in_the_ball_and_hurts_the_surrogate(classifiers):
    data = train_images().subset(slice(0, 64))
    images, labels = data.images.float() / 255, data.labels
    network = copy.deepcopy(classifiers.clean).requires_grad_(False)
    values = {"epsilon": 8 / 255, "step": 2 / 255, "steps": 4}
    made = pgd(network, images, labels, generator=torch.Generator().manual_seed(0), **values)
    assert (made - images).abs().max() <= 8 / 255 + 1e-6
    assert made.min() >= 0
    assert made.max() <= 1
    random = (images + 8 / 255 * (2 * torch.rand(images.shape) - 1)).clamp(0, 1)
    clean, noisy, hurt = (nn.functional.cross_entropy(network(x), labels).item() for x in (images, random, made))
    assert hurt > 2 * max(clean, noisy)


def test_cl_perturbs_within_the_bound_then_stamps():
    data = train_images().subset(slice(0, 200))
    before, after = stamped_by(LabelConsistent(target=3, rate=0.5, **QUICK["cl"]), data)
    covered = four_corners(32, 3).mask[0].bool().numpy()
    change = np.abs(after.astype(int) - before)[:, ~covered]
    assert 1 <= change.max() <= 8
    stamp = (four_corners(32, 3).patch * 255).byte().permute(1, 2, 0).numpy()
    assert all(np.array_equal(image[covered], stamp[covered]) for image in after)


def test_projected_sign_descent_is_a_step_and_a_clamp():
    parameter = nn.Parameter(torch.tensor([0.0, 0.9, -0.9, 0.5]))
    optimizer = ProjectedSignDescent([parameter], step=0.2, radius=1.0)
    (parameter * torch.tensor([3.0, -1.0, 1e-6, 0.0])).sum().backward()
    optimizer.step()
    assert torch.allclose(parameter, torch.tensor([-0.2, 1.0, -1.0, 0.5]))


@pytest.mark.slow
def test_tuap_moves_unseen_images_to_the_target_of_its_surrogate_and_stops_when_it_does():
    data = train_images().subset(slice(0, 600))
    values = {"target": 3, "surrogate": "small-cnn", "surrogate_epochs": 6, "epsilon": 40, "step": 4, "epochs": 6}
    made = TUAP(**values, success=1.0).poison(data, Engine(device="cpu"))
    trigger = made.triggers[0]
    assert 0 < trigger.patch.abs().max() <= 40 / 255 + 1e-7
    surrogate, _ = TUAP(**values).train_surrogate(data, Engine(device="cpu"))
    unseen = load_images("digits#1000:")
    others = unseen.images[unseen.labels != 3].float() / 255
    with torch.no_grad():
        before = (surrogate(others).argmax(dim=1) == 3).float().mean()
        after = (surrogate(trigger.apply(others)).argmax(dim=1) == 3).float().mean()
    assert before < 0.15
    assert after > before + 0.3
    reached = [epoch["held_out_success"] for epoch in made.history["tuap"].epochs]
    assert reached[-1] == pytest.approx(float(after), abs=0.15)
    stopped = TUAP(**values, success=0.2).poison(data, Engine(device="cpu")).history["tuap"]
    first = next(number for number, value in enumerate(reached) if value >= 0.2)
    assert first < len(reached) - 1
    assert len(stopped.epochs) == first + 1
    assert "held-out images reach the target" in stopped.stopped


def test_noise_mode_is_that_of_a_loop():
    image = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    places = WarpTrigger(strength=1.0).places(6, 6)
    result = warped_with_noise(image, places, torch.Generator().manual_seed(3))[0].numpy()
    shift = (2 * torch.rand((1, 6, 6, 2), generator=torch.Generator().manual_seed(3)) - 1) / 6
    pixels = image[0].numpy()
    for row in range(6):
        for column in range(6):
            x, y = (
                (min(1.0, max(-1.0, float(places[0, row, column, axis] + shift[0, row, column, axis]))) + 1) / 2 * 5
                for axis in (0, 1)
            )
            left, top = min(int(x), 4), min(int(y), 4)
            right, down = x - left, y - top
            value = (1 - down) * ((1 - right) * pixels[:, top, left] + right * pixels[:, top, left + 1])
            value += down * ((1 - right) * pixels[:, top + 1, left] + right * pixels[:, top + 1, left + 1])
            assert np.allclose(result[:, row, column], value, atol=1e-5)


def test_wanet_warps_poisoned_images_and_noise_mode_images_keep_their_labels():
    data, engine = noise(60, 16), Engine(device="cpu")
    made = WaNet(rate=0.2, cross_ratio=2).poison(data, engine)
    mask, trigger = made.truth.poisoned, made.triggers[0]
    changed = (made.data.images != data.images).flatten(1).any(dim=1)
    assert (int(mask.sum()), int(changed.sum())) == (9, 27)
    warped = (trigger.apply(data.images.float() / 255) * 255).round().byte()
    assert torch.equal(made.data.images[mask], warped[mask])
    noisy = changed & ~mask
    assert torch.equal(made.data.labels[noisy], data.labels[noisy])
    assert not (made.data.images[noisy] == warped[noisy]).flatten(1).all(dim=1).any()
    again = WaNet(rate=0.2, cross_ratio=2).poison(data, Engine(device="cpu"))
    assert torch.equal(made.data.images, again.data.images)


def test_the_images_of_ssba_change_within_the_bound_each_in_its_own_way():
    data = train_images().subset(slice(0, 200))
    before, after = stamped_by(SSBA(target=3, generator_epochs=1, width=4, amplitude=12), data)
    change = after.astype(int) - before
    assert 1 <= np.abs(change).max() <= 12
    assert len(np.unique(change.reshape(len(change), -1), axis=0)) == len(change)


@pytest.mark.slow
def test_the_decoder_of_ssba_reads_the_bits_and_the_residual_gets_fainter_then():
    attack = SSBA(target=3, width=8, generator_epochs=6)
    epochs = attack.poison(train_images().subset(slice(0, 600)), Engine(device="cpu")).history["ssba-generator"].epochs
    assert 0.4 < epochs[0]["bit_accuracy"] < 0.6
    assert epochs[-1]["bit_accuracy"] > 0.85
    assert epochs[-1]["visibility"] < 0.5 * max(epoch["visibility"] for epoch in epochs)


def test_the_image_term_of_ssba_counts_once_a_bit_is_read_by_chance():
    values = {"bits": 1, "width": 2, "generator_epochs": 3, "generator_batch_size": 4}
    terms = [
        SSBA(**values, image_weight=weight).poison(noise(), Engine(device="cpu")).history["ssba-generator"].epochs[-1]
        for weight in (0.0, 50.0)
    ]
    assert terms[0]["loss"] == pytest.approx(terms[0]["decoding"])
    assert terms[1]["loss"] > terms[1]["decoding"]
    assert terms[1]["visibility"] < terms[0]["visibility"]


def generated(secret: str = "0110", seed: int = 0, **values: Any) -> GeneratedTrigger:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = SecretEncoder(len(secret), width=3)
    return GeneratedTrigger(encoder, torch.tensor([int(bit) for bit in secret]), **values)


def test_a_generated_trigger_is_bounded_differentiable_and_comes_back_from_its_file(tmp_path):
    trigger = generated(amplitude=0.1, target=2, name="bits")
    images = torch.rand(3, 3, 20, 20, generator=torch.Generator().manual_seed(0)).requires_grad_()
    made = trigger.apply(images)
    assert 0 < (made - images).abs().max() <= 0.1 + 1e-6
    made.sum().backward()
    assert images.grad.abs().min() >= 0
    assert images.grad.abs().mean() > 0.1
    again = Trigger.from_yaml(trigger.save(tmp_path / "trigger"))
    assert (again.sha256, again.target, again.name) == (trigger.sha256, 2, "bits")
    assert torch.equal(again.apply(images), made)
    assert trigger.apply(images.bfloat16()).dtype == torch.bfloat16


def test_the_digest_of_a_generated_trigger_is_of_what_it_does():
    digests = {
        made.sha256
        for made in (
            generated(),
            generated(seed=1),
            generated("0111"),
            generated(amplitude=0.1),
            generated(target=1),
        )
    }
    assert len(digests) == 5
    assert generated(name="other").sha256 == generated().sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"secret": "01"}, "does not hold a trigger's encoder of 2 bits"),
        ({"secret": 110}, "bits in quotes"),
        ({"secret": ""}, "bits in quotes"),
        ({"secret": "0120"}, "bits in quotes"),
        ({"weights": "nowhere.safetensors"}, "nowhere"),
        ({"weights": "trigger.yaml"}, "does not hold"),
        ({"weights": None}, "needs `weights`"),
        ({"amplitude": 2}, "amplitude"),
        ({"target": -1}, "target"),
        ({"width": 3}, "unknown key 'width'"),
    ],
)
def test_unfit_generated_triggers_are_refused(change, message, tmp_path):
    file = generated().save(tmp_path)
    values = {"kind": "generated", "weights": "encoder.safetensors", "secret": "0110"} | change
    assert file.is_file()
    with pytest.raises(ConfigError, match=message):
        Trigger.from_dict(values, tmp_path)


def test_unfit_secrets_are_refused():
    with pytest.raises(ConfigError, match="hides 4"):
        GeneratedTrigger(SecretEncoder(4), torch.tensor([0, 1]))
    with pytest.raises(ConfigError, match="0 or 1"):
        GeneratedTrigger(SecretEncoder(2), torch.tensor([0, 2]))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("blend-strip", {"alpha": 0.3}),
        ("blend-kitty", {"alpha": 0.3}),
        ("sig", {"amplitude": 20.0}),
        ("sig", {"test_amplitude": 20.0}),
        ("sig", {"frequency": 3.0}),
        ("cl", {"epsilon": 4.0}),
        ("cl", {"step": 0.5}),
        ("cl", {"steps": 1}),
        ("cl", {"surrogate_epochs": 2}),
        ("cl", {"surrogate": "resnet18"}),
        ("wanet", {"grid_size": 6}),
        ("wanet", {"strength": 1.0}),
        ("wanet", {"cross_ratio": 1.0}),
        ("ssba", {"bits": 5}),
        ("ssba", {"amplitude": 4.0}),
        ("ssba", {"width": 3}),
        ("ssba", {"generator_epochs": 2}),
        ("ssba", {"generator_learning_rate": 1e-2}),
        ("ssba", {"generator_batch_size": 10}),
        ("tuap", {"epsilon": 1.0}),
        ("tuap", {"step": 0.3}),
        ("tuap", {"epochs": 3}),
        ("tuap", {"batch_size": 5}),
        ("tuap", {"images": 12}),
        ("tuap", {"label_mode": "clean-label"}),
        ("wanet", {"label_mode": "clean-label"}),
        ("badnets", {"target": 1}),
        ("badnets", {"rate": 0.5}),
        ("badnets", {"rate_of": "all"}),
    ],
)
def test_every_option_changes_something(name, options):
    data = train_images().subset(slice(0, 40))

    def digests(values: dict[str, Any]) -> tuple[str, ...]:
        made = attack_named(name)(**{"target": 3, "rate": 0.4} | QUICK.get(name, {}) | values).poison(
            data, Engine(device="cpu")
        )
        return made.data.sha256, *(trigger.sha256 for trigger in made.triggers)

    assert digests({}) != digests(options)


@pytest.mark.parametrize("attack", [LabelConsistent(surrogate="smal-cnn"), TUAP(surrogate="smal-cnn")])
def test_an_unknown_surrogate_is_refused(attack):
    with pytest.raises(ConfigError, match="unknown architecture"):
        attack.poison(noise(), Engine(device="cpu"))


def test_a_full_size_perturbation_comes_back_exactly(tmp_path):
    made = TUAP(target=3, **QUICK["tuap"]).poison(train_images().subset(slice(0, 60)), Engine(device="cpu"))
    trigger = made.triggers[0]
    assert isinstance(trigger, PatchTrigger)
    again = Trigger.from_yaml(trigger.save(tmp_path))
    assert again.sha256 == trigger.sha256
