"""The trial of a job: what it estimates, when it ends, and that it leaves everything as it was."""

from __future__ import annotations

import copy
import math
import time

import pytest
import torch
from torch.optim import SGD

from sanitize.errors import DataError
from sanitize.training import Engine
from sanitize.trial import estimate, seconds_of_passes
from tests.encoders import small_encoder

STEP, PREPARATION = 0.02, 0.05


class Companion:
    def before_epoch(self, network, generator):
        time.sleep(PREPARATION)
        return {}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def stage(engine, network, name="stage", **options):
    """120 images, 10 a step, 5 epochs: 60 steps of at least `STEP` seconds."""

    def loss(module, indices, generator):
        time.sleep(STEP)
        return {"loss": sum((parameter**2).sum() for parameter in network.parameters())}

    given = {"images": 120, "batch_size": 10, "epochs": 5, "optimizer": lambda parameters: SGD(parameters, lr=0.1)}
    return engine.fit(name, network, loss, **given | options)


def test_it_counts_and_times_the_steps_of_every_stage():
    network = torch.nn.Linear(2, 2)
    work = small_encoder()

    def two_stages(engine):
        stage(engine, network, "first")
        stage(engine, network, "second", max_steps=7)

    found = estimate(two_stages, work, Engine(device="cpu"))
    assert [(item.name, item.steps) for item in found.stages] == [("first", 60), ("second", 7)]
    assert 60 * STEP <= found.stages[0].seconds <= 60 * STEP * 2
    assert 7 * STEP <= found.stages[1].seconds <= 7 * STEP * 2
    assert found.seconds == pytest.approx(sum(item.seconds for item in found.stages), abs=0.2)
    assert found.complete
    assert found.memory is None or found.memory > 2**20


def test_what_is_prepared_in_each_epoch_counts():
    found = estimate(
        lambda engine: stage(engine, torch.nn.Linear(2, 2), companion=Companion()),
        small_encoder(),
        Engine(device="cpu"),
    )
    assert 60 * STEP + 5 * PREPARATION <= found.stages[0].seconds <= 2 * (60 * STEP + 5 * PREPARATION)


def test_stages_of_few_steps_are_done_whole():
    found = estimate(
        lambda engine: stage(engine, torch.nn.Linear(2, 2), max_steps=1), small_encoder(), Engine(device="cpu")
    )
    assert found.stages[0].steps == 1
    assert found.complete


def test_what_the_work_refuses_is_raised():
    def refuses(engine):
        raise DataError("too few")

    with pytest.raises(DataError, match="too few"):
        estimate(refuses, small_encoder(), Engine(device="cpu"))


def test_what_fails_on_a_stage_that_was_not_finished_is_not_an_error():
    def needs_a_trained_network(engine):
        history = stage(engine, torch.nn.Linear(2, 2))
        assert math.isnan(history.epochs[-1]["loss"])
        return history.epochs[-1]["knn_accuracy"]

    found = estimate(needs_a_trained_network, small_encoder(), Engine(device="cpu"))
    assert len(found.stages) == 1
    assert not found.complete
    assert "trained to its end" in found.note


@pytest.mark.parametrize("before", [True, False])
def test_it_ends_at_its_limit(before):
    network = small_encoder()

    def endless(engine):
        if not before:
            stage(engine, torch.nn.Linear(2, 2))
        copied = copy.deepcopy(network)
        while True:
            copied(torch.zeros(1, 3, 32, 32))

    started = time.perf_counter()
    found = estimate(endless, network, Engine(device="cpu"), limit=0.5)
    assert time.perf_counter() - started < 3
    assert not found.complete
    assert (found.seconds is None) == before
    network(torch.zeros(1, 3, 32, 32))  # the clock is no longer in it


def test_passes_are_timed_and_change_nothing():
    network, engine = small_encoder(), Engine(device="cpu")
    before = copy.deepcopy(network.state_dict())
    assert seconds_of_passes(network, 0, engine) == 0
    assert seconds_of_passes(network, 1, engine) > 0
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
