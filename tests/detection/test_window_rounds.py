"""Two triggers, of which one is stronger: windows of flat images, whose brightness says what they carry."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from sanitize.data import DeviceImages, ImageSet
from sanitize.detection import PoisonCAM
from sanitize.detection.window_evidence import Evidence, Thresholds
from sanitize.detection.window_rounds import Round, look_in_rounds
from sanitize.detection.window_search import WindowSearch
from sanitize.suspects import Encoder
from sanitize.training import Engine
from sanitize.types import ModelSpec, Normalization

COUNT, STRONG, WEAK = 200, 200, 100
KIND = torch.zeros(COUNT, dtype=torch.uint8)
KIND[:30], KIND[30:45] = STRONG, WEAK
SHARES = {STRONG: 0.95, WEAK: 0.8}


def flip(windows: torch.Tensor, sources: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The share that each kind flips; all but the best 20 are dropped early, as by halving."""
    share = torch.tensor([SHARES.get(int(window[0, 0, 0]), 0.01) for window in windows])
    flips = torch.full((len(windows),), 6)
    flips[share.argsort(descending=True, stable=True)[:20]] = 180
    return share, flips


def scored() -> WindowSearch:
    data = ImageSet(images=KIND[:, None, None, None].expand(COUNT, 3, 8, 8).contiguous())
    search = WindowSearch(
        data,
        DeviceImages(data, "cpu"),
        torch.zeros(COUNT, dtype=torch.int64),
        2,
        lambda images: images[:, 0],
        flip,
        Engine(device="cpu").processes,
    )
    search.score(torch.arange(COUNT))
    return search


def looked(search: WindowSearch, *, most: int = 5, known: float = 1.0, minimum_score: float = 0.3) -> list[Round]:
    def weigh(search: WindowSearch, top: torch.Tensor, number: int) -> Evidence:
        null = torch.linspace(0, 0.1, 199)
        score = float(search.values[top].mean())
        return Evidence(score, null, 9.0, null, Thresholds(0.01, 0.3, 1.5))

    def learn(search, ranked, top, left, number) -> torch.Tensor:
        assert (search.flips[top] > 0).all()
        assert left[top].all()
        poison = (KIND[top[0]] == KIND).float()
        poison[top] *= known
        return poison

    rounds = look_in_rounds(search, top=20, most=most, minimum_score=minimum_score, weigh=weigh, learn=learn)
    return list(rounds)


def test_the_weaker_trigger_is_found_among_what_is_left():
    search = scored()
    assert (KIND[search.flips == 180] == STRONG).all()  # it was dropped early beside the stronger one
    first, second = looked(search)
    assert (KIND[first.top] == STRONG).all()
    assert (KIND[second.top] == WEAK).all()
    assert len(second.top) == 15  # not 20: the others flip nothing
    assert (search.flips[KIND == WEAK] == 180).all()
    assert torch.equal(first.poison + second.poison, (KIND > 0).float())


def test_one_round_is_what_the_paper_does():
    (only,) = looked(scored(), most=1)
    assert (KIND[only.top] == STRONG).all()


def test_a_classifier_that_does_not_know_its_windows_ends_it():
    search = scored()
    before = search.flips.clone()
    (only,) = looked(search, known=0.0)
    assert only.poison is not None
    assert torch.equal(search.flips, before)


def test_windows_that_steer_nothing_are_no_candidates_of_a_later_round():
    assert len(looked(scored(), minimum_score=0.9)) == 1


def test_without_evidence_there_is_one_round_and_nothing_is_learned():
    search = scored()
    search.values *= 0.1
    (only,) = looked(search)
    assert only.poison is None
    assert not only.evidence.convincing


class TwoPatches(nn.Module):
    """Mean colours, and whether there is a patch of pure red or, half as strong, of pure green."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        red, green, blue = functional.avg_pool2d(images, 4, stride=1).unbind(dim=1)
        strong = (red - torch.maximum(green, blue)).amax(dim=(1, 2)).sub(0.5).relu()
        weak = (green - torch.maximum(red, blue)).amax(dim=(1, 2)).sub(0.5).relu()
        return torch.cat([images.mean(dim=(2, 3)), 8 * strong[:, None], 4 * weak[:, None]], dim=1)


def test_the_detector_looks_as_often_as_asked():
    """Of 200 images 30 have a red patch and 15 a green one: more red ones than there are candidates in a round."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.randint(80, 160, (200, 3, 1, 1), generator=generator)
    images = (colours + torch.randint(-20, 20, (200, 3, 16, 16), generator=generator)).to(torch.uint8)
    green = torch.arange(200).sub(37).abs() <= 7
    for row, (top, left) in enumerate(torch.randint(13, (45, 2), generator=generator).tolist()):
        images[row, :, top : top + 4, left : left + 4] = 0
        images[row, int(green[row]), top : top + 4, left : left + 4] = 255
    spec = ModelSpec(
        kind="encoder",
        architecture="own",
        normalization=Normalization.named("none"),
        image_size=16,
        output_size=5,
    )
    small = {"window": 6, "clusters": 6, "flip_images": 12, "mask_stride": 2}
    small |= {"networks": 1, "iterations": 60, "classifier_batch": 32, "dropped_share": 0, "jitter": 0, "flip": 0}
    found = []
    for rounds in (1, 2):
        detector = PoisonCAM(rounds=rounds, **small)
        scores = detector.score(Encoder(TwoPatches(), spec).eval(), ImageSet(images=images), Engine(device="cpu"))
        assert scores.rounds == rounds
        found.append((int(green[scores.top].sum()), int(detector.split(scores).poisoned[green].sum())))
    (candidates, removed), (more_candidates, more_removed) = found
    assert candidates == 0
    assert more_candidates >= 5
    assert more_removed > removed
