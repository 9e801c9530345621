"""Which images are poisoned, and their labels: counts of the papers' protocols, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sanitize.attacks import SIG, SSBA, TUAP, BadNets, BlendStrip, WaNet, attack_named
from sanitize.attacks.poisoning import choose, relabelled
from sanitize.data import ImageSet, PatchTrigger
from sanitize.errors import ConfigError, DataError
from sanitize.training import Engine

WHITE = PatchTrigger(torch.ones(3, 2, 2), position=(0, 0))
LABELLED = ["badnets", "trojan", "blend-strip", "blend-kitty", "sig", "cl", "ssba", "wanet", "tuap"]


def balanced(count: int, classes: int, size: int = 1) -> ImageSet:
    """Black images in class order."""
    return ImageSet(images=torch.zeros(count, 3, size, size, dtype=torch.uint8), labels=torch.arange(count) % classes)


def mask_of(data: ImageSet, **values: Any) -> Tensor:
    values = {"target": 0, "clean_label": False, "rate": 0.1, "rate_of": "eligible"} | values
    return choose(data, attack="test", generator=torch.Generator().manual_seed(0), **values)


@pytest.mark.parametrize(
    ("classes", "values", "count"),
    [
        (10, {}, 4500),
        (100, {}, 4950),
        (10, {"target": "next"}, 5000),
        (10, {"clean_label": True}, 500),
        (100, {"clean_label": True}, 50),
        (10, {"rate_of": "all"}, 5000),
        (10, {"clean_label": True, "rate_of": "all"}, 5000),
        (10, {"clean_label": True, "rate": 1.0}, 5000),
        (10, {"rate": 0.29, "target": "next"}, 14_500),
        (10, {"rate": 0.0001}, 4),
    ],
)
def test_counts_of_50000_images_are_those_of_the_papers(classes, values, count):
    data = balanced(50_000, classes)
    chosen = mask_of(data, **values)
    assert (chosen.dtype, chosen.shape, int(chosen.sum())) == (torch.bool, (50_000,), count)
    if values.get("target") != "next":
        assert bool(((data.labels[chosen] == 0) == values.get("clean_label", False)).all())


def test_the_share_of_a_rate_that_floats_cannot_hold_is_not_one_short():
    assert int(mask_of(balanced(100, 10), rate=0.29, target="next").sum()) == 29


def test_eligible_images_are_drawn_uniformly():
    data, drawn = balanced(40, 4), torch.zeros(40)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2000):
        drawn += choose(
            data, 1, clean_label=False, rate=0.5, rate_of="eligible", attack="test", generator=generator
        ).float()
    assert drawn[data.labels == 1].sum() == 0
    assert (drawn[data.labels != 1] - 1000).abs().max() < 5 * 500**0.5


def test_labels_after_the_attack_are_those_of_a_loop():
    data = balanced(60, 4)
    chosen = torch.rand(60, generator=torch.Generator().manual_seed(1)) < 0.5
    one = [2 if bad else label for bad, label in zip(chosen, data.labels.tolist(), strict=True)]
    every = [(label + 1) % 4 if bad else label for bad, label in zip(chosen, data.labels.tolist(), strict=True)]
    assert relabelled(data, chosen, 2).tolist() == one
    assert relabelled(data, chosen, "next").tolist() == every
    named = replace(data, class_names=("a", "b", "c", "d", "e"))
    assert relabelled(named, torch.ones(60, dtype=torch.bool), "next").max() == 4


def test_every_label_mode_on_images():
    data = balanced(100, 10, size=8)
    engine = Engine(device="cpu")
    one, every, kept = (
        BadNets(label_mode=mode, target=3, rate=0.5).poison(data, engine)
        for mode in ("all-to-one", "all-to-all", "clean-label")
    )
    assert (one.truth.count, every.truth.count, kept.truth.count) == (45, 50, 5)
    assert (one.triggers[0].target, every.triggers[0].target, kept.triggers[0].target) == (3, "next", 3)
    assert bool((one.data.labels[one.truth.poisoned] == 3).all())
    assert torch.equal(every.data.labels != data.labels, every.truth.poisoned)
    assert torch.equal(kept.data.labels, data.labels)
    assert bool((data.labels[kept.truth.poisoned] == 3).all())
    for made in (one, every, kept):
        changed = (made.data.images != data.images).flatten(1).any(dim=1)
        assert torch.equal(changed, made.truth.poisoned)
        assert torch.equal(made.truth.labels, data.labels)
    assert int(data.images.sum()) == 0


def test_rate_of_all_counts_all_images():
    assert BadNets(rate=0.5, rate_of="all").poison(balanced(100, 10, 8), Engine(device="cpu")).truth.share == 0.5


def test_a_given_trigger_brings_its_target_or_gets_the_attacks():
    data, engine = balanced(100, 10, 8), Engine(device="cpu")
    own = BadNets(target=3).poison(data, engine, triggers=[replace(WHITE, target=7)])
    assert own.triggers[0].target == 7
    assert bool((own.data.labels[own.truth.poisoned] == 7).all())
    given = BadNets(target=3).poison(data, engine, triggers=[WHITE])
    assert given.triggers[0].target == 3
    assert bool((given.data.images[given.truth.poisoned][:, :, :2, :2] == 255).all())
    assert int(given.data.images.sum()) == given.truth.count * 12 * 255
    assert WHITE.target is None
    with pytest.raises(ConfigError, match="all-to-all"):
        BadNets().poison(data, engine, triggers=[replace(WHITE, target="next")])
    with pytest.raises(ConfigError, match="all-to-one or clean-label"):
        BadNets(label_mode="all-to-all").poison(data, engine, triggers=[replace(WHITE, target=1)])
    with pytest.raises(ConfigError, match="one trigger, and 2 were given"):
        BadNets().poison(data, engine, triggers=[WHITE, WHITE])


class Busy(Engine):
    """An engine that must not be used for training."""

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("work was done before the input was refused")


@pytest.mark.parametrize("name", LABELLED)
def test_bad_input_is_refused_before_any_work(name):
    data, engine, attack = balanced(100, 10, 8), Busy(device="cpu"), attack_named(name)
    for rate in (0, -0.1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="rate"):
            attack(rate=rate)
    with pytest.raises(DataError, match="has none"):
        attack().poison(data.without_labels(), engine)
    with pytest.raises(DataError, match="of the target class 11"):
        attack(target=11).poison(data, engine)
    with pytest.raises(DataError, match=r"rate=0.001 of .* is 0"):
        attack(rate=0.001).poison(data, engine)
    with pytest.raises(ConfigError, match="unknown parameter"):
        attack(ratio=0.1)


@pytest.mark.parametrize("name", ["badnets", "trojan", "blend-strip", "sig", "cl", "wanet"])
def test_a_trigger_that_is_larger_than_the_image_is_refused_before_any_work(name):
    large = PatchTrigger(torch.ones(3, 9, 9), position="bottom-right")
    with pytest.raises(ConfigError, match="does not fit"):
        attack_named(name)(rate=0.5).poison(balanced(100, 10, 8), Busy(device="cpu"), triggers=[large])


@pytest.mark.parametrize(("attack", "size"), [(BadNets(), 2), (attack_named("trojan")(), 2), (attack_named("cl")(), 6)])
def test_images_that_are_smaller_than_the_own_trigger_are_refused(attack, size):
    with pytest.raises(ConfigError, match=r"does not fit|px or more"):
        attack.poison(balanced(200, 10, size), Busy(device="cpu"))


@pytest.mark.parametrize("attack", [TUAP(), SSBA()])
def test_attacks_that_make_their_trigger_take_no_other(attack):
    with pytest.raises(ConfigError, match="makes its own trigger"):
        attack.poison(balanced(100, 10, 8), Busy(device="cpu"), triggers=[WHITE])


@pytest.mark.parametrize(
    ("attack", "mode"), [(SIG, "all-to-one"), (attack_named("cl"), "all-to-all"), (TUAP, "all-to-all")]
)
def test_label_modes_that_an_attack_does_not_have(attack, mode):
    with pytest.raises(ConfigError, match="label_mode"):
        attack(label_mode=mode)


def test_more_images_than_there_are_cannot_be_poisoned():
    with pytest.raises(DataError, match="10 images are eligible"):
        SIG(rate=0.2, rate_of="all").poison(balanced(100, 10, 8), Engine(device="cpu"))
    with pytest.raises(DataError, match="noise-mode"):
        WaNet(rate=0.5, cross_ratio=2).poison(balanced(100, 10, 8), Engine(device="cpu"))
    with pytest.raises(ConfigError, match="kind warp"):
        WaNet(cross_ratio=1).poison(balanced(100, 10, 8), Engine(device="cpu"), triggers=[WHITE])


def test_the_seed_decides_which_images_are_poisoned():
    data = balanced(200, 10, 8)
    masks = [BlendStrip().poison(data, Engine(device="cpu", seed=seed)).truth.poisoned for seed in (0, 0, 1)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
