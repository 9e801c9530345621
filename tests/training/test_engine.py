"""The training loop: it optimises, it is deterministic, and it resumes to the same bits."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LinearLR

from sanitize.errors import ConfigError, TrainingError, WorkdirError
from sanitize.training import Engine

DATA = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
TARGET = DATA @ torch.tensor([1.0, -2.0, 3.0, 0.5])


class Interrupted(Exception):
    pass


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))


def loss(module, indices, generator):
    noise = 0.01 * torch.randn(len(indices), 4, generator=generator)
    error = (module(DATA[indices] + noise)[:, 0] - TARGET[indices]).square().mean()
    return {"loss": error, "error": error}


def train(engine, made, *, epochs=6, watch=None, **options):
    return engine.fit(
        "stage",
        made,
        loss,
        images=48,
        batch_size=16,
        epochs=epochs,
        optimizer=lambda parameters: SGD(parameters, lr=0.02, momentum=0.9),
        scheduler=lambda optimizer, steps: LinearLR(optimizer, 1.0, 0.1, total_iters=steps),
        watch=watch,
        **options,
    )


def test_the_loss_falls_and_the_history_is_complete():
    history = train(Engine(device="cpu"), network(), epochs=20)
    assert len(history.epochs) == 20
    assert history.steps == 20 * 3
    assert history.epochs[-1]["loss"] < 0.2 * history.epochs[0]["loss"]
    assert history.images_per_second > 0


def weights(made: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in made.state_dict().values()])


def test_same_seed_same_bits_other_seed_other_bits():
    results = []
    for seed in (1, 1, 2):
        made = network()
        train(Engine(device="cpu", seed=seed), made)
        results.append(weights(made))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("after", [1, 3, 5])
def test_a_resumed_stage_ends_in_the_same_bits(tmp_path, after):
    whole = network()
    expected = train(Engine(device="cpu", checkpoints=tmp_path / "whole"), whole)

    seen = 0

    def interrupt(_):
        nonlocal seen
        seen += 1
        if seen > after:
            raise Interrupted
        return {}, None

    with pytest.raises(Interrupted):
        train(Engine(device="cpu", checkpoints=tmp_path / "parts"), network(), watch=interrupt)
    resumed = network()
    torch.manual_seed(99)  # the global generator must not matter
    history = train(Engine(device="cpu", checkpoints=tmp_path / "parts", resume=True), resumed)
    assert torch.equal(weights(whole), weights(resumed))
    assert history.epochs == expected.epochs
    assert history.steps == expected.steps


def test_a_finished_stage_is_restored_without_training(tmp_path):
    made = network()
    train(Engine(device="cpu", checkpoints=tmp_path), made)
    again = network()
    history = train(
        Engine(device="cpu", checkpoints=tmp_path, resume=True), again, watch=lambda _: pytest.fail("trained")
    )
    assert torch.equal(weights(made), weights(again))
    assert history.steps == 18


def test_without_resume_old_checkpoints_are_not_read(tmp_path):
    train(Engine(device="cpu", checkpoints=tmp_path), network(), epochs=1)
    history = train(Engine(device="cpu", checkpoints=tmp_path), network(), epochs=2)
    assert history.steps == 6


def test_a_damaged_checkpoint_is_named(tmp_path):
    train(Engine(device="cpu", checkpoints=tmp_path), network(), epochs=1)
    (tmp_path / "stage.ckpt").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(WorkdirError, match=r"stage\.ckpt"):
        train(Engine(device="cpu", checkpoints=tmp_path, resume=True), network())


def test_no_partial_files_stay(tmp_path):
    train(Engine(device="cpu", checkpoints=tmp_path), network(), epochs=2)
    assert [path.name for path in tmp_path.iterdir()] == ["stage.ckpt"]


def test_max_steps_ends_the_stage():
    assert train(Engine(device="cpu"), network(), max_steps=5).steps == 5


def test_a_watch_stops_the_stage_and_adds_metrics():
    history = train(Engine(device="cpu"), network(), watch=lambda _: ({"seen": 7.0}, "enough"))
    assert history.stopped == "enough"
    assert history.epochs == [history.epochs[0]]
    assert history.epochs[0]["seen"] == 7.0


def test_train_mode_false_keeps_batch_norm_statistics():
    made = network()
    before = made[1].running_mean.clone()
    train(Engine(device="cpu"), made, train_mode=False)
    assert torch.equal(made[1].running_mean, before)
    moved = network()
    train(Engine(device="cpu"), moved)
    assert not torch.equal(moved[1].running_mean, before)


def test_a_frozen_network_is_an_error():
    with pytest.raises(TrainingError, match="stage: every parameter of the network is frozen"):
        train(Engine(device="cpu"), network().requires_grad_(False))


def test_a_nan_loss_is_an_error():
    with pytest.raises(TrainingError, match="stage 'stage', epoch 0"):
        Engine(device="cpu").fit(
            "stage",
            network(),
            lambda module, indices, generator: {"loss": module(DATA[indices]).sum() * float("nan")},
            images=48,
            batch_size=16,
            epochs=1,
            optimizer=lambda parameters: SGD(parameters, lr=0.1),
        )


@pytest.mark.parametrize(("epochs", "message"), [(1, "weights became NaN"), (2, "epoch 1")])
def test_a_gradient_that_is_not_finite_is_an_error_also_in_the_last_step(epochs, message):
    def finite_loss_of_endless_slope(module, indices, generator):
        return {"loss": (module(DATA[indices]) * 0.0).square().sum().sqrt()}  # sqrt has no slope at 0

    with pytest.raises(TrainingError, match=message):
        Engine(device="cpu").fit(
            "stage",
            network(),
            finite_loss_of_endless_slope,
            images=16,
            batch_size=16,
            epochs=epochs,
            optimizer=lambda parameters: SGD(parameters, lr=0.02),
            clip_norm=1.0,
        )


def test_a_watch_that_sees_nan_is_an_error():
    with pytest.raises(TrainingError, match="similarity"):
        train(Engine(device="cpu"), network(), watch=lambda _: ({"similarity": float("nan")}, None))


def test_forward_gives_float32_in_order_whatever_the_batch():
    made = network().eval()
    engine = Engine(device="cpu")
    one = engine.forward(made, lambda indices: DATA[indices], 50, batch_size=7)
    other = engine.forward(made, lambda indices: DATA[indices], 50, batch_size=50)
    assert one.shape == (50, 1)
    assert torch.allclose(one, other, atol=1e-6)


def test_bf16_is_used_and_gives_nearly_the_same():
    made = network()
    history = train(Engine(device="cpu", precision="bf16-mixed"), made, epochs=20)
    assert history.epochs[-1]["loss"] < 0.6 * history.epochs[0]["loss"]
    exact = network()
    train(Engine(device="cpu"), exact, epochs=20)
    assert not torch.equal(weights(made), weights(exact))


@pytest.mark.parametrize(
    "options", [{"device": "abacus"}, {"precision": "7-bit"}, {"strategy": "none-such"}], ids=lambda o: next(iter(o))
)
def test_what_is_not_to_be_had_is_a_config_error(options):
    with pytest.raises(ConfigError, match=str(next(iter(options.values())))):
        Engine(**{"device": "cpu"} | options)


def test_generators_differ_by_purpose_and_seed():
    def draw(seed, purpose):
        return torch.rand(3, generator=Engine(device="cpu", seed=seed).generator(purpose)).tolist()

    assert draw(0, "a") == draw(0, "a")
    assert draw(0, "a") != draw(0, "b")
    assert draw(0, "a") != draw(1, "a")
