"""Distillation beyond the table: the loss against a slow reference, and what each option does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sanitize.data import load_images
from sanitize.defenses.distill import Distill
from sanitize.errors import ConfigError, DataError
from sanitize.functional.distillation import similarity_divergence
from sanitize.training import Engine
from tests.encoders import small_encoder

DATA = load_images("digits#0:64").without_labels()
SHORT = {"epochs": 1, "batch_size": 16}


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in network.state_dict().values()])


def purified(network=None, seed: int = 0, **options):
    return Distill(**SHORT | options).purify(network or small_encoder(), DATA, Engine(device="cpu", seed=seed))


@pytest.fixture(scope="module")
def reference():
    return purified()


def test_the_loss_is_the_divergence_written_out():
    generator = torch.Generator().manual_seed(0)
    teacher, student, anchors = (torch.randn(n, 6, generator=generator).double() for n in (4, 4, 9))
    anchors = nn.functional.normalize(anchors)
    total = 0.0
    for image in range(4):
        p, q = (
            torch.softmax(
                torch.stack([nn.functional.cosine_similarity(features[image], anchor, dim=0) for anchor in anchors])
                / 0.1,
                dim=0,
            )
            for features in (teacher, student)
        )
        total += float((p * (p / q).log()).sum())
    found = similarity_divergence(teacher, student, anchors, temperature=0.1)
    assert found.item() == pytest.approx(total / 4)


def test_the_loss_is_zero_for_scaled_features_and_falls_along_its_gradient():
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(4, 6, generator=generator)
    anchors = nn.functional.normalize(torch.randn(9, 6, generator=generator))
    assert similarity_divergence(teacher, 3 * teacher, anchors, temperature=0.1).item() == pytest.approx(0, abs=1e-5)
    student = torch.randn(4, 6, generator=generator, requires_grad=True)
    loss = similarity_divergence(teacher, student, anchors, temperature=0.5)
    (gradient,) = torch.autograd.grad(loss, student)
    assert 0 < similarity_divergence(teacher, student - 0.1 * gradient, anchors, temperature=0.5) < loss


@pytest.mark.parametrize(
    "option",
    [
        {"epochs": 2},
        {"batch_size": 32},
        {"learning_rate": 0.01},
        {"momentum": 0.0},
        {"weight_decay": 0.1},
        {"temperature": 0.2},
        {"min_scale": 0.8},
        {"jitter": 0.0},
        {"grey": 0.9},
        {"flip": 0.0},
    ],
    ids=lambda option: next(iter(option)),
)
def test_every_option_changes_the_result(option, reference):
    assert not torch.equal(weights(purified(**option).network), weights(reference.network))


def test_the_table_of_options_is_complete():
    (mark,) = [mark for mark in test_every_option_changes_the_result.pytestmark if mark.name == "parametrize"]
    assert {key for option in mark.args[1] for key in option} == set(Distill.model_fields)


def test_same_seed_same_bits_other_seed_other_bits(reference):
    assert torch.equal(weights(purified().network), weights(reference.network))
    assert not torch.equal(weights(purified(seed=1).network), weights(reference.network))


def test_the_student_starts_from_weights_of_its_own_and_the_suspect_stays():
    suspect = small_encoder()
    before = weights(suspect)
    student = purified(suspect, learning_rate=1e-12).network
    assert torch.equal(weights(suspect), before)
    assert student.spec == suspect.spec
    first = next(suspect.backbone.parameters())
    assert not torch.allclose(next(student.backbone.parameters()), first, atol=1e-3)


def test_the_student_comes_closer_to_the_suspect(reference):
    assert reference.after["student_similarity"] > reference.before["student_similarity"]
    losses = [epoch["loss"] for epoch in purified(epochs=6).history["distill"].epochs]
    assert losses[-1] < losses[0] / 2


def test_bad_input_is_refused():
    with pytest.raises(DataError, match="at least 64"):
        Distill().check("encoder", DATA.subset(slice(0, 63)))
    with pytest.raises(ConfigError, match="works on encoders"):
        Distill().check("classifier", DATA)
    with pytest.raises(ConfigError, match="temperature"):
        Distill(temperature=0)
