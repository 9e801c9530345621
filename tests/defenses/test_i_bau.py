"""I-BAU beyond the table: the hypergradient against closed forms and finite differences, and what each option does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from sanitize.data import load_images
from sanitize.defenses.i_bau import IBAU
from sanitize.errors import ConfigError, DataError
from sanitize.functional.hypergradient import implicit_term
from sanitize.functional.linear_head import fit_linear_head
from sanitize.training import Engine
from tests.classifiers import small_classifier
from tests.encoders import small_encoder

DATA = load_images("digits#0:16")
SHORT = {"rounds": 1, "batch_size": 8, "hypergradient_steps": 2, "inner_steps": 3}


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in network.state_dict().values()])


def purified(network=None, seed: int = 0, data=DATA, **options):
    network = network or small_classifier()
    return IBAU(**SHORT | options).purify(network, data, Engine(device="cpu", seed=seed))


@pytest.fixture(scope="module")
def reference():
    return purified()


def quadratic(theta, delta, matrix, rate):
    """Phi of gradient descent on 1/2 (delta - B theta)^T A (delta - B theta) in delta; its optimum is B theta."""
    hessian, shift = matrix
    return delta - rate * hessian @ (delta - shift @ theta)


def test_the_hypergradient_of_a_quadratic_is_the_closed_form():
    generator = torch.Generator().manual_seed(0)
    root, shift = torch.randn(4, 4, generator=generator).double(), torch.randn(4, 3, generator=generator).double()
    hessian = root @ root.T / 4 + torch.eye(4)
    rate = 1 / torch.linalg.eigvalsh(hessian)[-1]
    theta = torch.randn(3, generator=generator).double().requires_grad_()
    delta = (shift @ theta).detach().requires_grad_()  # the inner optimum
    outer_gradient = torch.randn(4, generator=generator).double()
    term = implicit_term(quadratic(theta, delta, (hessian, shift), rate), delta, outer_gradient, steps=400)
    (found,) = torch.autograd.grad(term, theta)
    torch.testing.assert_close(found, shift.T @ outer_gradient)  # d (B theta) / d theta = B


def test_a_hypergradient_agrees_with_finite_differences():
    """Outer cosine of the inner optimum of (delta^2 theta - delta)^2 + delta^2, found by Newton's method."""

    def inner(theta, delta):
        return ((delta.square() * theta - delta).square() + delta.square() + 0.3 * delta * theta).sum()

    def optimum(theta):
        delta = torch.tensor(-0.1).double()
        for _ in range(200):
            delta = delta.detach().requires_grad_()
            (slope,) = torch.autograd.grad(inner(theta, delta), delta)
            delta = delta - 0.1 * slope
        return delta.detach()

    theta = torch.tensor(0.7).double().requires_grad_()
    delta = optimum(theta.detach()).requires_grad_()
    (slope,) = torch.autograd.grad(inner(theta, delta), delta, create_graph=True)
    (outer_gradient,) = torch.autograd.grad(delta.cos(), delta)
    term = implicit_term(delta - 0.1 * slope, delta, outer_gradient, steps=300)
    step = 1e-5
    expected = (optimum(theta.detach() + step).cos() - optimum(theta.detach() - step).cos()) / (2 * step)
    torch.testing.assert_close(torch.autograd.grad(term, theta)[0], expected, rtol=1e-5, atol=1e-9)


def test_one_step_takes_the_outer_gradient_as_it_is():
    theta, delta = torch.tensor(3.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    term = implicit_term(0.5 * delta + theta, delta, torch.tensor(1.0), steps=1)
    assert torch.autograd.grad(term, theta)[0] == 1.0


@pytest.mark.parametrize("classes", [2, 5])
def test_the_linear_head_classifies_like_its_regression(classes):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % classes
    features = torch.randn(60, 8, generator=generator) + 3 * torch.randn(classes, 8, generator=generator)[labels]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(features.numpy(), labels)
    logits = fit_linear_head(features, labels)(features)
    assert logits.shape == (60, classes)
    expected = torch.from_numpy(model.predict_proba(features.numpy())).float()
    torch.testing.assert_close(logits.softmax(dim=1), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "option",
    [
        {"rounds": 2},
        {"batch_size": 4},
        {"learning_rate": 1e-2},
        {"inner_learning_rate": 1.0},
        {"inner_steps": 5},
        {"radius": 1e-6},
        {"penalty": 1.0},
        {"perturbed_share": 0.5},
        {"hypergradient_steps": 4},
        {"hypergradient_rate": 1.0},
    ],
    ids=lambda option: next(iter(option)),
)
def test_every_option_changes_the_result(option, reference):
    assert not torch.equal(weights(purified(**option).network), weights(reference.network))


def test_the_table_of_options_is_complete():
    (mark,) = [mark for mark in test_every_option_changes_the_result.pytestmark if mark.name == "parametrize"]
    assert {key for option in mark.args[1] for key in option} == set(IBAU.model_fields)


def test_same_seed_same_bits_other_seed_other_bits(reference):
    assert torch.equal(weights(purified().network), weights(reference.network))
    assert not torch.equal(weights(purified(seed=1).network), weights(reference.network))


def test_a_small_batch_still_gets_the_perturbation():
    """With a share of 0.01 and 20 images a batch, rounding down would give it to nobody: delta would not matter."""
    assert not torch.equal(weights(purified(inner_learning_rate=1e-6).network), weights(purified().network))


def test_the_perturbation_stays_in_its_ball():
    (round_,) = purified(inner_learning_rate=1e6, radius=0.05).history["i-bau"].epochs
    assert round_["perturbation_norm"] == pytest.approx(0.05 * (3 * 32 * 32) ** 0.5, rel=1e-4)


def test_the_suspect_and_batch_norm_statistics_are_left_unchanged():
    suspect = small_classifier()
    before = weights(suspect)
    result = purified(suspect)
    assert torch.equal(weights(suspect), before)
    for name, value in suspect.state_dict().items():
        if "running" in name:
            assert torch.equal(result.network.state_dict()[name], value), name


def test_an_encoder_comes_back_without_its_head_and_classes_may_be_missing():
    suspect = small_encoder()
    chosen = DATA.subset((DATA.labels == 2) | (DATA.labels == 5))
    result = purified(suspect, data=chosen)
    assert result.network.spec == suspect.spec
    assert result.network.state_dict().keys() == suspect.state_dict().keys()
    assert not torch.equal(weights(result.network), weights(suspect))


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path):
    class Interrupted(Exception):
        pass

    class Failing:
        """A recorder that fails after the first round."""

        def __getattr__(self, name):
            return getattr(Engine(device="cpu").recorder, name)

        def metrics(self, stage, values, number):
            if number == 1:
                raise Interrupted

    whole = IBAU(**SHORT | {"rounds": 3}).purify(small_classifier(), DATA, Engine(device="cpu"))
    with pytest.raises(Interrupted):
        IBAU(**SHORT | {"rounds": 3}).purify(
            small_classifier(), DATA, Engine(device="cpu", checkpoints=tmp_path, recorder=Failing())
        )
    resumed = IBAU(**SHORT | {"rounds": 3}).purify(
        small_classifier(), DATA, Engine(device="cpu", checkpoints=tmp_path, resume=True)
    )
    assert torch.equal(weights(resumed.network), weights(whole.network))


def test_missing_labels_are_refused():
    with pytest.raises(DataError, match="i-bau needs labels"):
        IBAU().check("classifier", DATA.without_labels())


def test_labels_of_another_task_are_refused():
    with pytest.raises(DataError, match="the classes of the network"):
        purified(data=replace(DATA, labels=DATA.labels + 5))


def test_bad_values_are_refused():
    with pytest.raises(ConfigError, match="perturbed_share"):
        IBAU(perturbed_share=0)
