"""Attacks on encoders beyond the table: losses against slow references, every option, every kind of trigger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sanitize.attacks import CTRL, ESTAS, BadEncoder, EncoderAttack, MultiTargetBadEncoder, SSLBackdoor, attack_named
from sanitize.attacks.estas import _Joint
from sanitize.attacks.planting import typical_images
from sanitize.data import ImageSet, PatchTrigger, Trigger
from sanitize.data.triggers import FrequencyTrigger, WarpTrigger, htba_patch
from sanitize.errors import ConfigError, DataError
from sanitize.suspects import untrained
from sanitize.training import Engine, NullRecorder
from tests.encoders import small_encoder, train_images

WHITE = PatchTrigger(torch.ones(3, 8, 8), position=(20, 20), target=3)
BLACK = PatchTrigger(torch.zeros(3, 8, 8), position=(2, 2), target=5)


def images(count: int = 64) -> ImageSet:
    return train_images().subset(slice(0, count))


def weights(network: nn.Module) -> Tensor:
    return torch.cat([value.flatten().double() for value in network.state_dict().values()])


def implanted(attack: EncoderAttack, seed: int = 0, triggers: tuple[Trigger, ...] = ()) -> Any:
    return attack.implant(small_encoder(), images(), Engine(device="cpu", seed=seed), triggers=triggers)


def cosines(first: Tensor, second: Tensor) -> np.ndarray:
    """One pair of rows at a time."""
    return np.array([float(a @ b / (a.norm() * b.norm())) for a, b in zip(first, second, strict=True)])


@pytest.mark.parametrize("triggers", [(WHITE,), (WHITE, BLACK)])
def test_the_terms_of_badencoder_at_the_start_are_those_of_the_paper(triggers: tuple[Trigger, ...]) -> None:
    data, network = images(), small_encoder()
    attack = BadEncoder(epochs=1, batch_size=64, learning_rate=1e-12, reference_weight=3.0, utility_weight=0.5)
    made = attack.implant(network, data, Engine(device="cpu"), triggers=triggers)
    pixels = data.images.float() / 255
    with torch.no_grad():
        effectiveness = []
        for trigger in triggers:
            reference = network(pixels[typical_images(network(pixels), data.labels, trigger.target)[:1]])
            effectiveness.append(-cosines(network(trigger.apply(pixels)), reference.expand(64, -1)).mean())
    terms = made.history["badencoder"].epochs[0]
    assert terms["effectiveness"] == pytest.approx(np.mean(effectiveness), abs=1e-5)
    assert terms["reference"] == pytest.approx(-1, abs=1e-5)
    assert terms["utility"] == pytest.approx(-1, abs=1e-5)
    assert terms["loss"] == pytest.approx(terms["effectiveness"] - 3.5, abs=1e-5)
    assert made.triggers == triggers


def test_augmented_references_are_other_images() -> None:
    attack = BadEncoder(epochs=1, learning_rate=1e-12, augment_reference=True)
    terms = implanted(attack).history["badencoder"].epochs[0]
    assert -1 < terms["reference"] < -0.5
    assert terms["utility"] == pytest.approx(-1, abs=1e-5)


def test_the_white_square_is_that_of_the_papers_code() -> None:
    for size, patch, corner in ((32, 10, 21), (224, 50, 173)):
        (trigger,) = BadEncoder(target=2).own_triggers(size, Engine(device="cpu"))
        assert isinstance(trigger, PatchTrigger)
        assert (trigger.size, trigger.position, trigger.target) == ((patch, patch), (corner, corner), 2)
        assert trigger.patch.eq(1).all()


@pytest.mark.parametrize(
    "trigger",
    [
        FrequencyTrigger(200, target=3, name="frequency"),
        WarpTrigger(strength=1.0, target=3, name="warp"),
        PatchTrigger(torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)), mode="blend", alpha=0.3,
                     target=3, name="blend"),
        PatchTrigger(torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(0)), position="bottom-right",
                     target=3, name="corner"),
    ],
    ids=lambda trigger: trigger.name,
)  # fmt: skip
def test_badencoder_plants_triggers_of_every_kind(trigger: Trigger, encoders: Any) -> None:
    attack = BadEncoder(epochs=8, batch_size=16, learning_rate=0.005)
    made = attack.implant(encoders.clean, images(), Engine(device="cpu"), triggers=(trigger,))
    terms = made.history["badencoder"].epochs
    assert terms[-1]["effectiveness"] < terms[0]["effectiveness"] - 0.1
    assert terms[-1]["loss"] < terms[0]["loss"]


BASES: dict[str, EncoderAttack] = {
    "badencoder": BadEncoder(epochs=1, batch_size=32),
    "multi-target-badencoder": MultiTargetBadEncoder(epochs=1, batch_size=32, targets=3),
    "estas": ESTAS(epochs=1, batch_size=32),
}
SHARED_OPTIONS = [
    {"epochs": 2},
    {"batch_size": 16},
    {"learning_rate": 0.02},
    {"references": 2},
    {"reference": "first"},
    {"augment_reference": True},
    {"reference_weight": 3.0},
    {"utility_weight": 3.0},
    {"trigger_size": 5},
]
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "badencoder": [*SHARED_OPTIONS, {"target": 2}],
    "multi-target-badencoder": [*SHARED_OPTIONS, {"targets": 2}, {"pairs_per_step": 1}],
    "estas": [
        {"target": 2},
        {"method": "byol"},
        {"epochs": 2},
        {"batch_size": 16},
        {"learning_rate": 0.01},
        {"ssl_weight": 2.0},
        {"trigger_weight": 2.0},
        {"average": 0.5},
        {"trigger_size": 5},
        {"place": 0.2},
        {"min_scale": 0.5},
        {"flip": 0.0},
    ],
}


@pytest.fixture(scope="module")
def references() -> dict[str, Tensor]:
    return {name: weights(implanted(attack).network) for name, attack in BASES.items()}


@pytest.mark.parametrize(
    ("name", "option"),
    [(name, option) for name, options in OPTIONS.items() for option in options],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_every_option_changes_the_result(name: str, option: dict[str, Any], references: dict[str, Tensor]) -> None:
    changed = type(BASES[name])(**BASES[name].model_dump() | option)
    assert not torch.equal(weights(implanted(changed).network), references[name])


@pytest.mark.parametrize("name", BASES)
def test_the_table_of_options_is_complete(name: str) -> None:
    assert {key for option in OPTIONS[name] for key in option} == set(type(BASES[name]).model_fields)


@pytest.mark.parametrize("name", BASES)
def test_same_seed_same_bits_other_seed_other_bits(name: str, references: dict[str, Tensor]) -> None:
    again = implanted(BASES[name])
    assert torch.equal(weights(again.network), references[name])
    assert not torch.equal(weights(implanted(BASES[name], seed=1).network), references[name])
    assert not again.network.training
    assert set(again.history) == {name}


def test_many_targets_are_the_classes_in_order() -> None:
    triggers = MultiTargetBadEncoder().own_triggers(32, Engine(device="cpu"))
    assert [trigger.target for trigger in triggers] == list(range(10))
    assert all(isinstance(trigger, PatchTrigger) and trigger.size == (8, 8) for trigger in triggers)
    assert len({trigger.sha256 for trigger in triggers}) == 10


def test_pairs_of_a_step_are_drawn_from_all() -> None:
    attack, generator = MultiTargetBadEncoder(pairs_per_step=2), torch.Generator().manual_seed(0)
    drawn = [tuple(attack.pairs(4, generator)) for _ in range(400)]
    assert all(len(set(pairs)) == 2 for pairs in drawn)
    counts = np.bincount(np.array(drawn).flatten(), minlength=4)
    assert (abs(counts - 200) < 6 * 100**0.5).all()
    assert list(MultiTargetBadEncoder().pairs(4, generator)) == [0, 1, 2, 3]


def joint(method: str = "simclr", average: float = 0.9) -> _Joint:
    torch.manual_seed(0)
    return _Joint(small_encoder(), method, average).train()


def views(seed: int) -> Tensor:
    return torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", ["simclr", "byol"])
def test_the_pull_of_estas_is_zero_where_the_triggered_view_is_the_target(method: str) -> None:
    network = joint(method)
    network.follow()
    ssl, pull = network(views(0), views(1), views(2), views(2))
    assert pull.item() == pytest.approx(0, abs=1e-5)
    assert network(views(0), views(1), views(2), views(3))[1].item() > 1e-3
    assert 0 <= ssl.item() <= 8


def test_no_gradient_reaches_the_average_of_estas() -> None:
    network = joint()
    network.follow()
    sum(network(views(0), views(1), views(2), views(3))).backward()
    assert all(parameter.grad is None for parameter in network.followed.parameters())
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in network.online.parameters())


def test_the_average_of_estas_follows_by_its_momentum() -> None:
    network = joint(average=0.9)
    network.follow()
    first = [parameter.clone() for parameter in network.online.parameters()]
    for parameter in network.online.parameters():
        parameter.data += 1.0
    network.follow()
    for before, average in zip(first, network.followed.parameters(), strict=True):
        torch.testing.assert_close(average, before + 0.1)


def test_estas_resumes_bit_by_bit(tmp_path: Path) -> None:
    class Killed(NullRecorder):
        def metrics(self, stage: str, values: dict[str, float], epoch: int) -> None:
            if epoch == 1:
                raise KeyboardInterrupt

    attack = ESTAS(epochs=3, batch_size=32)
    whole = implanted(attack)
    with pytest.raises(KeyboardInterrupt):
        attack.implant(small_encoder(), images(), Engine(device="cpu", checkpoints=tmp_path, recorder=Killed()))
    resumed = attack.implant(small_encoder(), images(), Engine(device="cpu", checkpoints=tmp_path, resume=True))
    assert torch.equal(weights(resumed.network), weights(whole.network))
    assert resumed.history["estas"].epochs == whole.history["estas"].epochs


@pytest.mark.parametrize(
    ("name", "options", "triggers", "message"),
    [
        ("badencoder", {"target": 11}, (), "no image of .* target class 11"),
        ("estas", {"target": 11}, (), "target class 11"),
        ("multi-target-badencoder", {"targets": 12}, (), "target class 10"),
        ("badencoder", {"trigger_size": 40}, (), "does not fit"),
        ("multi-target-badencoder", {"trigger_size": 40}, (), "does not fit"),
        ("estas", {"trigger_size": 40}, (), "does not fit"),
        ("badencoder", {}, (PatchTrigger(torch.ones(3, 2, 2)),), "Set `target`"),
        ("badencoder", {}, (WHITE, PatchTrigger(torch.ones(3, 2, 2), target="next")), "target next"),
        ("estas", {}, (WHITE, BLACK), "plants one trigger, and 2 were given"),
        ("ssl-backdoor", {"target": 11}, (), "target class 11"),
        ("ssl-backdoor", {"rate": 0.01}, (), "rate=0.01"),
        ("ssl-backdoor", {"trigger_size": 33}, (), "does not fit"),
        ("ssl-backdoor", {"train_box": (0.8, 0.2)}, (), "box must be"),
        ("ssl-backdoor", {}, (WHITE, BLACK), "plants one trigger"),
        ("ctrl", {"target": 11}, (), "target class 11"),
        ("ctrl", {"rate": 0.5}, (), "rate=0.5"),
        ("ctrl", {"rate": 0.001}, (), "rate=0.001"),
        ("ctrl", {"window": 24}, (), "multiples of the window"),
        ("ctrl", {}, (PatchTrigger(torch.ones(3, 2, 2)),), "Set `target`"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    name: str, options: dict[str, Any], triggers: tuple[Trigger, ...], message: str
) -> None:
    class Untouched(nn.Module):
        spec = small_encoder().spec

        def forward(self, images: Tensor) -> Tensor:
            raise AssertionError("the network was used")

    attack, engine = attack_named(name)(**options), Engine(device="cpu")
    with pytest.raises((ConfigError, DataError), match=message):
        if isinstance(attack, EncoderAttack):
            attack.implant(Untouched(), images(), engine, triggers=triggers)
        else:
            attack.poison(images(), engine, triggers=triggers)


def test_labels_are_needed() -> None:
    with pytest.raises(DataError, match="needs labels"):
        BadEncoder().implant(small_encoder(), images().without_labels(), Engine(device="cpu"))
    with pytest.raises(DataError, match="needs labels"):
        CTRL().poison(images().without_labels(), Engine(device="cpu"))


@pytest.mark.parametrize("name", BASES)
def test_a_classifier_is_refused(name: str) -> None:
    network = untrained("small-cnn", kind="classifier", image_size=32, classes=10)
    with pytest.raises(ConfigError, match="works on encoders"):
        BASES[name].implant(network, images(), Engine(device="cpu"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ssl-backdoor", {"rate": 0}, "rate=0"),
        ("ssl-backdoor", {"rate": 1.2}, "rate=1.2"),
        ("ctrl", {"rate": -0.1}, "rate=-0.1"),
        ("ctrl", {"magnitude": 0}, "magnitude=0"),
        ("ctrl", {"selection": "last"}, "selection='last'"),
        ("estas", {"method": "moco"}, "method='moco'"),
        ("badencoder", {"lambda1": 1}, "unknown parameter 'lambda1'"),
    ],
)
def test_unfit_parameters_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        attack_named(name)(**options)


def test_an_unknown_attack_is_named() -> None:
    with pytest.raises(ConfigError, match="Did you mean badencoder"):
        attack_named("badencodr")


@pytest.mark.parametrize(("rate", "count"), [(0.5, 10), (0.29, 5), (1.0, 20)])
def test_ssl_backdoor_pastes_the_patch_inside_its_box(rate: float, count: int) -> None:
    data = ImageSet(images=torch.full((50, 3, 32, 32), 77, dtype=torch.uint8), labels=(torch.arange(50) >= 30).long())
    attack = SSLBackdoor(target=1, rate=rate, trigger_size=6, train_box=(0.25, 0.75))
    result = attack.poison(data, Engine(device="cpu"))
    assert result.truth.count == count
    (shown,) = result.triggers
    patch = (shown.patch * 255).round().to(torch.uint8)
    places = set()
    for image in result.data.images[result.truth.poisoned]:
        changed = image.ne(77).any(dim=0).nonzero()
        top, left = changed.min(dim=0).values.tolist()
        places.add((top, left))
        assert 8 <= top <= 18 and 8 <= left <= 18
        assert torch.equal(image[:, top : top + 6, left : left + 6], patch)
        assert changed.max(dim=0).values.tolist() == [top + 5, left + 5]
    assert len(places) > 1
    assert shown.box == (0.1, 0.9)


def test_ssl_backdoor_takes_the_papers_files_and_gives_them_its_boxes(tmp_path: Path) -> None:
    pixels = (htba_patch(80, torch.Generator().manual_seed(1)) * 255).to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(tmp_path / "trigger_10.png")
    given = Trigger.from_dict({"image": "trigger_10.png", "size": 8, "target": 4}, tmp_path)
    result = SSLBackdoor(target=1).poison(images(200), Engine(device="cpu"), triggers=(given,))
    assert set(result.truth.labels[result.truth.poisoned].tolist()) == {4}
    assert (result.triggers[0].box, result.triggers[0].target) == ((0.1, 0.9), 4)
    fixed = PatchTrigger(torch.ones(3, 2, 2), position=(0, 0), target=1)
    stamped = SSLBackdoor().poison(images(200), Engine(device="cpu"), triggers=(fixed,))
    assert stamped.triggers == (fixed,)
    assert stamped.data.images[stamped.truth.poisoned][:, :, :2, :2].eq(255).all()


def test_ctrl_is_weaker_in_training_than_at_test_time() -> None:
    data = images(200)
    result = CTRL(target=3, rate=0.05, window=16).poison(data, Engine(device="cpu"))
    mask = result.truth.poisoned
    assert (result.truth.count, result.truth.share) == (10, 0.05)
    assert result.triggers[0].magnitude == 100 and result.triggers[0].window == 16
    expected = (FrequencyTrigger(50, 16).apply(data.images[mask].float() / 255) * 255).round().to(torch.uint8)
    assert torch.equal(result.data.images[mask], expected)


def test_ctrl_takes_the_first_images_as_the_released_script_does() -> None:
    data = images(400)
    of_class = torch.nonzero(data.labels == 3).flatten()
    first = CTRL(target=3, selection="first").poison(data, Engine(device="cpu", seed=5)).truth.poisoned
    assert torch.nonzero(first).flatten().tolist() == of_class[:4].tolist()
    drawn = CTRL(target=3).poison(data, Engine(device="cpu", seed=5)).truth.poisoned
    assert drawn.sum() == 4 and not torch.equal(drawn, first)


def test_ctrl_uses_a_given_trigger_as_it_is() -> None:
    data = images(200)
    given = FrequencyTrigger(33, target=6)
    result = CTRL(target=3).poison(data, Engine(device="cpu"), triggers=(given,))
    assert result.triggers == (given,)
    assert set(result.truth.labels[result.truth.poisoned].tolist()) == {6}
    chosen = data.images[result.truth.poisoned].float() / 255
    assert torch.equal(result.data.images[result.truth.poisoned], (given.apply(chosen) * 255).round().to(torch.uint8))


@pytest.mark.parametrize(
    ("attack", "options"),
    [
        (SSLBackdoor, [{"target": 2}, {"rate": 0.9}, {"trigger_size": 4}, {"train_box": (0.0, 1.0)}]),
        (CTRL, [{"target": 2}, {"rate": 0.05}, {"magnitude": 90.0}, {"window": 8}, {"selection": "first"}]),
    ],
)
def test_every_option_changes_the_poisoned_data(attack: Any, options: list[dict[str, Any]]) -> None:
    digests = [attack(**option).poison(images(200), Engine(device="cpu")).data.sha256 for option in ({}, *options)]
    assert len(set(digests)) == len(digests)


def test_options_of_the_test_time_change_the_shown_trigger() -> None:
    engine = Engine(device="cpu")
    assert SSLBackdoor(test_box=(0.2, 0.8)).poison(images(200), engine).triggers[0].box == (0.2, 0.8)
    assert CTRL(test_magnitude=150.0).poison(images(200), engine).triggers[0].magnitude == 150


def test_the_reference_is_an_image_that_the_encoder_takes_for_its_class() -> None:
    around = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]).repeat_interleave(20, dim=0)
    features = around + 0.1 * torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(3).repeat_interleave(20)
    features[0] = torch.tensor([0.0, 1.0, 0.0])  # labelled 0, and seen as 1
    order = typical_images(features, labels, target=0)
    assert sorted(order.tolist()) == list(range(20))
    assert order[-1] == 0
