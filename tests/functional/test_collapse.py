"""Collapse against plain loops, the changes against their formulas, and the search on networks with known answers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sanitize.errors import TrainingError
from sanitize.functional.collapse import (
    FAMILIES,
    Pattern,
    Perturbation,
    centred_collapse,
    fresh_search,
    new_change,
    search,
    unlearning_losses,
)

SIZE = 8


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow_cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def slow_collapse(features: torch.Tensor, centre: torch.Tensor) -> float:
    rows = [[x - m for x, m in zip(row, centre.tolist(), strict=True)] for row in features.tolist()]
    pairs = [slow_cosine(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
    return sum(pairs) / len(pairs)


class Backdoored(nn.Module):
    """Waves, which no common shift makes alike, and one feature that `hidden` drives when it is strong enough."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(3 * SIZE * SIZE, 6, bias=False)
        self.projection.weight.data = torch.randn(6, 3 * SIZE * SIZE, generator=generator(1))
        self.hidden = torch.randint(2, (3 * SIZE * SIZE,), generator=generator(2)) * 2.0 - 1

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = images.flatten(1) - 0.5
        drive = 4 * torch.nn.functional.softplus(50 * ((flat * self.hidden).mean(dim=1, keepdim=True) - 0.03))
        return torch.cat([0.3 * torch.cos(self.projection(flat)), drive], dim=1)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return 0.3 + 0.4 * torch.rand(40, 3, SIZE, SIZE, generator=generator(3))


def find(network, images, family="perturbation", bound=0.15, seed=0, **options):
    with torch.no_grad():
        centre = network(images).mean(dim=0)
    return search(
        network,
        lambda indices: images[indices],
        len(images),
        lambda drawn: new_change(family, SIZE, bound, drawn),
        centre,
        generator(seed),
        **{"batch_size": 16} | options,
    )


def test_collapse_equals_a_plain_loop():
    features, centre = torch.randn(7, 5, generator=generator()), torch.randn(5, generator=generator(1))
    assert float(centred_collapse(features, centre)) == pytest.approx(slow_collapse(features, centre), abs=1e-6)


def test_collapse_at_known_points():
    centre = torch.tensor([5.0, 5.0, 5.0])
    same = centre + torch.tensor([[1.0, 0, 0], [2.0, 0, 0], [7.0, 0, 0]])
    assert float(centred_collapse(same, centre)) == pytest.approx(1.0)
    assert float(centred_collapse(centre + torch.eye(3), centre)) == pytest.approx(0.0, abs=1e-7)
    opposite = centre + torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]])
    assert float(centred_collapse(opposite, centre)) == pytest.approx(-1.0)
    assert float(centred_collapse(centre.expand(3, 3), centre)) == 0.0


def test_collapse_has_the_right_gradient_and_pulls_features_together():
    features = torch.randn(5, 4, generator=generator(), dtype=torch.float64, requires_grad=True)
    centre = torch.zeros(4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda value: centred_collapse(value, centre), features)
    (gradient,) = torch.autograd.grad(centred_collapse(features, centre), features)
    assert centred_collapse(features + 0.1 * gradient, centre) > centred_collapse(features, centre)


def test_a_perturbation_stays_in_its_bound_and_the_image_in_range(images):
    change = Perturbation(SIZE, 0.1, generator())
    assert float(change.delta.detach().abs().max()) <= 0.1 / 4
    with torch.no_grad():
        change.delta += torch.randn(change.delta.shape, generator=generator())
    change.project_()
    assert float(change.delta.detach().abs().max()) == pytest.approx(0.1)
    assert torch.equal(change(images), torch.clamp(images + change.delta, 0, 1))
    assert float(change(torch.ones(1, 3, SIZE, SIZE)).detach().max()) <= 1
    assert float(change.penalty()) == 0


def test_a_pattern_is_laid_over_by_its_mask(images):
    change = Pattern(SIZE, generator())
    mask, picture = torch.sigmoid(change.raw_mask).detach(), torch.sigmoid(change.raw_picture).detach()
    shown = change(images).detach()
    for n, c, y, x in [(0, 0, 0, 0), (3, 2, 5, 1), (39, 1, 7, 7)]:
        m = float(mask[0, 0, y, x])
        assert float(shown[n, c, y, x]) == pytest.approx(
            (1 - m) * float(images[n, c, y, x]) + m * float(picture[0, c, y, x])
        )
    assert float(change.penalty().detach()) == pytest.approx(float(mask.mean()))
    with torch.no_grad():
        change.raw_mask.fill_(-100)
    assert torch.equal(change(images), images)


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_can_be_shown(family):
    for picture in new_change(family, SIZE, 0.1, generator()).pictures().values():
        assert picture.shape == (3, SIZE, SIZE)
        assert not picture.requires_grad
        assert float(picture.min()) >= 0
        assert float(picture.max()) <= 1


def test_the_search_finds_a_hidden_perturbation(images):
    network = Backdoored()
    nothing = find(network, images, bound=1e-6)
    found = find(network, images)
    assert nothing.collapse < 0.2
    assert found.collapse > 0.9
    signs = found.change.delta.flatten().sign()
    assert float((signs == network.hidden).float().mean()) > 0.9


def test_the_search_finds_a_pattern_smaller_than_the_image(images):
    found = find(Backdoored(), images, "pattern", steps=40)
    assert found.collapse > 0.7
    assert found.penalty < 0.3  # it starts near a half


def test_a_search_that_finds_nothing_is_a_result(images):
    def deaf(shown: torch.Tensor) -> torch.Tensor:
        order = shown.flatten(1).argsort(dim=1)[:, :6].float()  # no gradient, hardly changed by anything small
        return order + 0 * shown.flatten(1)[:, :6]

    assert abs(find(deaf, images, bound=0.01).collapse) < 0.2


def test_the_network_gets_no_gradient(images):
    network = Backdoored()
    find(network, images)
    assert network.projection.weight.grad is None
    assert network.projection.weight.requires_grad


@pytest.mark.parametrize("family", FAMILIES)
def test_the_search_depends_on_the_generator_alone(images, family):
    first, again, other = (find(Backdoored(), images, family, seed=seed, steps=3) for seed in (1, 1, 2))
    for one, same, different in zip(*(found.change.parameters() for found in (first, again, other)), strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, different)


def test_nan_leads_to_one_new_start_and_then_to_an_error(images):
    calls = 0

    class Sick(Backdoored):
        def forward(self, shown):
            nonlocal calls
            calls += 1
            return super().forward(shown) * (float("nan") if calls <= self.sick_calls else 1.0)

    network = Sick()
    network.sick_calls = 2  # the centre, and one step of the first start
    with torch.no_grad():
        centre = Backdoored()(images).mean(dim=0)
    calls = 1
    found = search(
        network,
        lambda indices: images[indices],
        len(images),
        lambda drawn: new_change("perturbation", SIZE, 0.15, drawn),
        centre,
        generator(),
        steps=4,
    )
    assert calls == 1 + 2 * 5
    assert math.isfinite(found.collapse)
    network.sick_calls = 10**6
    with pytest.raises(TrainingError, match="NaN twice"):
        find(network, images)


def test_fresh_searches_take_the_better_of_two(images):
    network = Backdoored()
    with torch.no_grad():
        centre = network(images).mean(dim=0)
    arguments = (network, lambda indices: images[indices], len(images), "pattern", SIZE, centre)
    best = fresh_search(*arguments, generator(), steps=5, batch_size=16)
    drawn = generator()
    both = [search(*arguments[:3], lambda g: Pattern(SIZE, g), centre, drawn, steps=5, batch_size=16) for _ in range(2)]
    assert best.collapse - best.penalty == max(one.collapse - one.penalty for one in both)
    gentle = fresh_search(*arguments[:3], "perturbation", *arguments[4:], generator(), steps=5, batch_size=16)
    assert float(gentle.change.delta.abs().max()) <= 0.05 + 1e-7


def test_the_unlearning_losses_equal_plain_loops_and_pull_towards_the_anchor():
    anchor = torch.randn(6, 5, generator=generator())
    kept, changed = (torch.randn(6, 5, generator=generator(seed)).requires_grad_() for seed in (1, 2))
    terms = unlearning_losses(anchor, kept, changed, consistency_weight=2.0, unlearn_weight=7.0)
    values = {name: float(term.detach()) for name, term in terms.items()}

    def slow(other: torch.Tensor) -> float:
        return -sum(slow_cosine(a, b) for a, b in zip(anchor.tolist(), other.tolist(), strict=True)) / 6

    assert values["consistency"] == pytest.approx(slow(kept), abs=1e-6)
    assert values["restoration"] == pytest.approx(slow(changed), abs=1e-6)
    assert values["loss"] == pytest.approx(2 * slow(kept) + 7 * slow(changed), abs=1e-5)
    for moved, name in ((kept, "consistency"), (changed, "restoration")):
        (gradient,) = torch.autograd.grad(terms["loss"], moved, retain_graph=True)
        step = {"kept": kept.detach(), "changed": changed.detach()}
        step["kept" if moved is kept else "changed"] = (moved - 0.1 * gradient).detach()
        after = unlearning_losses(anchor, **step, consistency_weight=2.0, unlearn_weight=7.0)
        assert after[name] < terms[name]
    perfect = unlearning_losses(anchor, 3 * anchor, 0.1 * anchor, consistency_weight=1.0, unlearn_weight=1.0)
    assert float(perfect["loss"]) == pytest.approx(-2.0)
