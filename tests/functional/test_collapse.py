"""Collapse against plain loops, the changes against their formulas, and the search on networks with known answers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sanitize.errors import TrainingError
from sanitize.functional.changes import FAMILIES, Blends, Patches, Perturbations
from sanitize.functional.collapse import (
    alignment,
    centred_collapse,
    fresh_search,
    search,
    unlearning_losses,
)

SIZE = 8
KINDS = (*FAMILIES, "blend")


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


def start(family: str, bound: float, drawn: torch.Generator):
    if family == "perturbation":
        return Perturbations.start(8, SIZE, bound, drawn)
    return Blends.start(8, SIZE, bound, drawn) if family == "blend" else Patches.start(SIZE, 1 / 4, drawn)


def find(network, images, family="perturbation", bound=0.15, seed=0, **options):
    with torch.no_grad():
        centre = network(images).mean(dim=0)
    return search(
        network,
        lambda indices: images[indices],
        len(images),
        lambda drawn: start(family, bound, drawn),
        centre,
        generator(seed),
        **{"batch_size": 16} | options,
    )


def test_collapse_equals_a_plain_loop():
    features, centre = torch.randn(7, 5, generator=generator()), torch.randn(5, generator=generator(1))
    assert float(centred_collapse(features, centre)) == pytest.approx(slow_collapse(features, centre), abs=1e-6)
    several = torch.randn(3, 7, 5, generator=generator(2))
    expected = [slow_collapse(one, centre) for one in several]
    assert centred_collapse(several, centre).tolist() == pytest.approx(expected, abs=1e-6)


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


def test_alignment_equals_a_plain_loop_and_takes_the_nearest_direction():
    features, centre = torch.randn(2, 7, 5, generator=generator()), torch.randn(5, generator=generator(1))
    directions = torch.nn.functional.normalize(torch.randn(3, 5, generator=generator(2)), dim=1)
    expected = [
        max(
            sum(slow_cosine([x - m for x, m in zip(row, centre.tolist(), strict=True)], goal) for row in one) / 7
            for goal in directions.tolist()
        )
        for one in features.tolist()
    ]
    assert alignment(features, centre, directions).tolist() == pytest.approx(expected, abs=1e-6)
    assert float(alignment(centre + 3 * directions[1].expand(4, 5), centre, directions)) == pytest.approx(1.0)


def test_alignment_pulls_features_to_the_direction():
    features = torch.randn(5, 4, generator=generator(), dtype=torch.float64, requires_grad=True)
    centre, direction = torch.zeros(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)[:1]
    assert torch.autograd.gradcheck(lambda value: alignment(value, centre, direction), features)
    (gradient,) = torch.autograd.grad(alignment(features, centre, direction), features)
    assert alignment(features + 0.1 * gradient, centre, direction) > alignment(features, centre, direction)


def test_perturbations_stay_in_their_bound_and_images_in_range(images):
    changes = Perturbations.start(4, SIZE, 0.1, generator())
    assert changes.values.shape == (4, 3, SIZE, SIZE)
    assert float(changes.values.detach().abs().max()) <= 0.1 / 4
    with torch.no_grad():
        changes.values += torch.randn(changes.values.shape, generator=generator())
    changes.project_()
    assert float(changes.values.detach().abs().max()) == pytest.approx(0.1)
    shown = changes(images)
    for candidate in range(4):
        assert torch.equal(shown[candidate], torch.clamp(images + changes.values[candidate], 0, 1))
    assert float(changes(torch.ones(1, 3, SIZE, SIZE)).detach().max()) <= 1


def test_a_varied_perturbation_is_up_to_three_times_as_strong():
    changes = Perturbations(torch.full((2, 3, SIZE, SIZE), 0.05), 0.1)
    strength = changes.varied(torch.full((200, 3, SIZE, SIZE), 0.5), generator()).detach() - 0.5
    each = strength[:, 0, 0, 0]
    assert torch.allclose(strength, each[:, None, None, None].expand_as(strength))
    assert 0.05 <= float(each.min()) < 0.06 < 0.14 < float(each.max()) <= 0.15 + 1e-6


def test_pictures_are_blended_in_and_take_contrast(images):
    changes = Blends.start(4, SIZE, 0.1, generator())
    shown, pictures = changes(images[:5]).detach(), changes.values.detach().sigmoid()
    assert shown.shape == (4, 5, 3, SIZE, SIZE)
    for candidate, number in [(0, 0), (3, 4), (1, 2)]:
        assert torch.allclose(shown[candidate, number], 0.9 * images[number] + 0.1 * pictures[candidate], atol=1e-6)
    assert torch.equal(changes.picture(), pictures[0])
    assert torch.allclose(shown[:, 0] - shown[:, 1], (0.9 * (images[0] - images[1])).expand(4, -1, -1, -1), atol=1e-6)


@pytest.mark.parametrize(("share", "most"), [(0.1, 0.3), (0.4, 0.4)])
def test_a_varied_picture_has_up_to_three_tenths(share, most):
    """Or its own share, where that is more; a black picture leaves the rest of a white image."""
    changes = Blends(torch.full((2, 3, SIZE, SIZE), -40.0), share)
    left = changes.varied(torch.ones(200, 3, SIZE, SIZE), generator()).detach()
    each = 1 - left[:, 0, 0, 0]
    assert torch.allclose(1 - left, each[:, None, None, None].expand_as(left))
    assert share - 1e-6 <= float(each.min()) < share + 0.01
    assert most - 0.01 < float(each.max()) <= most + 1e-6


class Shy(nn.Module):
    """Waves, and one feature that answers to little contrast: to what no perturbation does that is the same for all."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(3 * SIZE * SIZE, 6, bias=False)
        self.projection.weight.data = torch.randn(6, 3 * SIZE * SIZE, generator=generator(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = images.flatten(1)
        drive = 4 * torch.nn.functional.softplus(400 * (0.098 - flat.std(dim=1, keepdim=True)))
        return torch.cat([0.3 * torch.cos(self.projection(flat)), drive], dim=1)


def test_a_search_for_pictures_finds_what_none_for_perturbations_does(images):
    network = Shy()
    with torch.no_grad():
        assert float(network(images)[:, -1].max()) < 0.2  # silent on clean images
    perturbation, blend = (find(network, images, family, bound=0.2).collapse for family in ("perturbation", "blend"))
    assert blend > 0.9 > 0.5 > perturbation


def slow_patch(image: torch.Tensor, colours: torch.Tensor, row: int, column: int) -> torch.Tensor:
    shown = image.clone()
    for c in range(3):
        for y in range(colours.shape[1]):
            for x in range(colours.shape[2]):
                shown[c, row + y, column + x] = 1 / (1 + math.exp(-float(colours[c, y, x])))
    return shown


def test_patches_are_laid_at_their_places(images):
    changes = Patches.start(SIZE, 3 / 8, generator())
    assert changes.places.tolist() == [[y, x] for y in (0, 3, 5) for x in (0, 3, 5)]  # the last ones end at the rim
    shown = changes(images[:5]).detach()
    assert shown.shape == (9, 5, 3, SIZE, SIZE)
    for candidate, number in [(0, 0), (4, 3), (8, 4), (5, 1)]:
        row, column = changes.places[candidate].tolist()
        expected = slow_patch(images[number], changes.values[candidate].detach(), row, column)
        assert torch.allclose(shown[candidate, number], expected, atol=1e-6)


def test_a_varied_patch_is_at_random_places_all_over_the_image(images):
    changes = Patches.start(SIZE, 1 / 4, generator()).select(torch.tensor([5]))
    grey = torch.full((300, 3, SIZE, SIZE), 2.0)  # a value that no patch has
    shown = changes.varied(grey, generator(1)).detach()
    places = {tuple((one[0] != 2).nonzero()[0].tolist()) for one in shown}
    assert places == {(y, x) for y in range(SIZE - 1) for x in range(SIZE - 1)}
    row, column = (shown[7, 0] != 2).nonzero()[0].tolist()
    assert torch.allclose(shown[7], slow_patch(grey[7], changes.values[0].detach(), row, column), atol=1e-6)


@pytest.mark.parametrize("family", KINDS)
def test_selected_candidates_are_copies(images, family):
    changes = start(family, 0.1, generator())
    some = changes.select(torch.tensor([3, 1]))
    assert torch.equal(some(images), changes(images)[[3, 1]])
    joined = some.joined(changes)
    assert torch.equal(joined(images), torch.cat([some(images), changes(images)]))
    with torch.no_grad():
        some.values.zero_()
        joined.values.zero_()
    assert float(changes.values.detach().abs().min()) > 0


@pytest.mark.parametrize("family", KINDS)
def test_pictures_can_be_shown(family):
    picture = start(family, 0.1, generator()).picture()
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
    assert len(found.changes.values) == 1
    signs = found.changes.values.flatten().sign()
    assert float((signs == network.hidden).float().mean()) > 0.9


def test_a_search_goes_to_the_directions_that_are_known(images):
    """The hidden perturbation drives the last feature up; towards another feature the search goes elsewhere."""
    network = Backdoored()
    towards = [find(network, images, directions=torch.eye(7)[[feature]]) for feature in (6, 0)]
    assert [found.alignment > 0.9 for found in towards] == [True, False]
    assert int(towards[0].direction.argmax()) == 6
    assert float(towards[0].direction.norm()) == pytest.approx(1.0)
    assert towards[0].collapse > 0.9 > towards[1].collapse
    assert find(network, images).alignment is None


class Marked(nn.Module):
    """Random features, but where a corner is much brighter in red than in blue."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(3 * SIZE * SIZE, 6, bias=False)
        self.projection.weight.data = torch.randn(6, 3 * SIZE * SIZE, generator=generator(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        corner = images[:, :, -2:, :2].mean(dim=(2, 3))
        drive = 3 * torch.nn.functional.softplus(10 * (corner[:, :1] - corner[:, 2:] - 0.2))
        return torch.cat([torch.cos(self.projection((images - 0.5).flatten(1))), drive], dim=1)


def test_the_search_finds_the_place_of_a_patch(images):
    network = Marked()
    found = find(network, images, "patch")
    assert found.changes.places.tolist() == [[SIZE - 2, 0]]
    assert found.collapse > 0.7
    red, _, blue = found.changes.values[0].sigmoid().mean(dim=(1, 2)).tolist()
    assert red > blue + 0.4


def test_more_candidates_are_searched_in_groups_with_the_same_result(images):
    small, large = (find(Marked(), images, "patch", batch_size=size) for size in (2, 400))
    assert torch.allclose(small.changes.values, large.changes.values, atol=1e-4)  # 16 candidates of 8, 16, 32 images


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


@pytest.mark.parametrize("family", KINDS)
def test_the_search_depends_on_the_generator_alone(images, family):
    first, again, other = (find(Backdoored(), images, family, seed=seed, steps=3) for seed in (1, 1, 2))
    assert torch.equal(first.changes.values, again.changes.values)
    assert not torch.equal(first.changes.values, other.changes.values)


def test_nan_leads_to_one_new_start_and_then_to_an_error(images):
    calls = 0

    class Sick(Backdoored):
        def forward(self, shown):
            nonlocal calls
            calls += 1
            return super().forward(shown) * (float("nan") if calls <= self.sick_calls else 1.0)

    network = Sick()
    network.sick_calls = 2  # the centre, and the first step of the first start
    with torch.no_grad():
        centre = Backdoored()(images).mean(dim=0)
    calls = 1
    found = search(
        network,
        lambda indices: images[indices],
        len(images),
        lambda drawn: start("perturbation", 0.15, drawn),
        centre,
        generator(),
        steps=4,
    )
    assert calls == 1 + 2 * (3 * 4 + 1)  # three parts of four steps and a measurement, twice
    assert math.isfinite(found.collapse)
    network.sick_calls = 10**6
    with pytest.raises(TrainingError, match="NaN twice"):
        find(network, images)


@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_searches_look_for_small_changes_only(images, family):
    network = Backdoored()
    with torch.no_grad():
        centre = network(images).mean(dim=0)
    arguments = (network, lambda indices: images[indices], len(images), family, SIZE, centre)
    found = fresh_search(*arguments, generator(), steps=2, batch_size=16)
    if family == "perturbation":
        assert float(found.changes.values.abs().max()) <= 0.05 + 1e-7
        fewer = fresh_search(*arguments, generator(), steps=2, batch_size=16, starts=2)
        assert not torch.equal(found.changes.values, fewer.changes.values)
    else:
        assert found.changes.values.shape == (1, 3, 1, 1)


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
