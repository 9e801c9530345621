"""The loss terms of BMAIU against plain loops, at known points, within bounds, and by the direction of gradients."""

from __future__ import annotations

import math

import pytest
import torch

from sanitize.functional.implantation import implant_losses, unlearn_losses
from sanitize.functional.similarity import centred_similarity, mean_similarity


def slow_similarity(first: torch.Tensor, second: torch.Tensor) -> float:
    values = []
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        values.append(dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b)))
    return sum(values) / len(values)


@pytest.fixture
def features() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(6, 5, generator=generator) for _ in range(4)]


def test_mean_similarity_equals_a_plain_loop(features):
    assert float(mean_similarity(features[0], features[1])) == pytest.approx(
        slow_similarity(features[0], features[1]), abs=1e-6
    )


def test_centred_similarity_ignores_a_common_offset(features):
    shifted = features[0] + 100.0
    assert float(mean_similarity(shifted, shifted.roll(1, 0))) > 0.99
    assert float(centred_similarity(shifted, shifted).min()) == pytest.approx(1.0, abs=1e-5)
    assert float(centred_similarity(shifted, shifted.roll(1, 0)).mean()) < 0.5


def test_implant_terms_equal_plain_loops(features):
    anchor, clean, triggered, reference = features
    losses = implant_losses(anchor, clean, triggered, reference, effectiveness_weight=3.0)
    assert float(losses["consistency"]) == pytest.approx(-slow_similarity(anchor, clean), abs=1e-6)
    assert float(losses["effectiveness"]) == pytest.approx(-slow_similarity(triggered, reference), abs=1e-6)
    assert float(losses["loss"]) == pytest.approx(
        -slow_similarity(anchor, clean) - 3.0 * slow_similarity(triggered, reference), abs=1e-5
    )


def test_unlearn_terms_equal_plain_loops(features):
    anchor, clean, triggered, reference = features
    losses = unlearn_losses(anchor, clean, triggered, reference, unlearn_weight=10.0, separation_weight=2.0)
    assert float(losses["consistency"]) == pytest.approx(-slow_similarity(anchor, clean), abs=1e-6)
    assert float(losses["restoration"]) == pytest.approx(-slow_similarity(anchor, triggered), abs=1e-6)
    assert float(losses["separation"]) == pytest.approx(slow_similarity(triggered, reference), abs=1e-6)
    expected = -slow_similarity(anchor, clean) - 10.0 * slow_similarity(anchor, triggered)
    assert float(losses["loss"]) == pytest.approx(expected + 2.0 * slow_similarity(triggered, reference), abs=1e-5)


def test_known_points(features):
    anchor = features[0]
    start = implant_losses(anchor, anchor.clone(), -anchor, anchor, effectiveness_weight=1.0)
    assert float(start["consistency"]) == pytest.approx(-1.0, abs=1e-6)  # same weights at the start of stage 1
    assert float(start["effectiveness"]) == pytest.approx(1.0, abs=1e-6)
    end = unlearn_losses(anchor, anchor, anchor, -anchor, unlearn_weight=10.0, separation_weight=1.0)
    assert float(end["loss"]) == pytest.approx(-12.0, abs=1e-5)  # -(1 + u2) + u3 * s with s = -1


@pytest.mark.parametrize("seed", range(5))
def test_every_term_stays_within_its_bounds(seed):
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(4, 3, generator=generator) * 10 ** float(seed - 2) for _ in range(4)]
    for losses in (
        implant_losses(*drawn, effectiveness_weight=1.0),
        unlearn_losses(*drawn, unlearn_weight=1.0, separation_weight=1.0),
    ):
        for name, value in losses.items():
            if name != "loss":
                assert -1.0 - 1e-6 <= float(value) <= 1.0 + 1e-6, name


def cosine_after_a_step(term: str, moved: int, towards: int, features: list[torch.Tensor]) -> tuple[float, float]:
    """Similarity of `moved` to `towards`, before and after one small step down the term's gradient."""
    copies = [feature.clone().requires_grad_() for feature in features]
    losses = implant_losses(*copies, effectiveness_weight=1.0) | {
        name: value
        for name, value in unlearn_losses(*copies, unlearn_weight=1.0, separation_weight=1.0).items()
        if name != "consistency"
    }
    losses[term].backward()
    stepped = copies[moved] - 0.1 * copies[moved].grad
    before = float(mean_similarity(features[moved], features[towards]))
    return before, float(mean_similarity(stepped.detach(), features[towards]))


@pytest.mark.parametrize(
    ("term", "moved", "towards", "grows"),
    [
        ("consistency", 1, 0, True),  # clean features stay near the anchor
        ("effectiveness", 2, 3, True),  # triggered features are pulled onto the reference
        ("restoration", 2, 0, True),  # triggered features go back to their clean image
        ("separation", 2, 3, False),  # and away from the reference
    ],
)
def test_gradients_point_the_right_way(term, moved, towards, grows, features):
    before, after = cosine_after_a_step(term, moved, towards, features)
    assert after > before if grows else after < before


def test_the_reference_gets_a_gradient_unless_detached(features):
    anchor, clean, triggered, reference = features
    reference = reference.clone().requires_grad_()
    implant_losses(anchor, clean, triggered, reference, effectiveness_weight=1.0)["loss"].backward()
    assert float(reference.grad.abs().sum()) > 0


def test_at_the_start_of_stage_2_consistency_has_no_gradient(features):
    anchor, clean = features[0], features[0].clone().requires_grad_()
    unlearn_losses(anchor, clean, features[1], features[2], unlearn_weight=0.0, separation_weight=0.0)[
        "loss"
    ].backward()
    assert float(clean.grad.abs().max()) < 1e-6
