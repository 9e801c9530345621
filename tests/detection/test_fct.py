"""FCT: scores against a slow reference, and decisions on scores whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from sanitize.data import DeviceImages, load_images
from sanitize.detection import FCT, Scores
from sanitize.detection.fct import feature_extractor
from sanitize.errors import ArchitectureError, ConfigError, DataError
from sanitize.functional.consistency import transform
from sanitize.functional.two_groups import TwoGroups
from sanitize.suspects import Classifier
from sanitize.training import Engine
from sanitize.types import ModelSpec, Normalization
from tests.classifiers import small_classifier


def scored(seed: int = 0, count: int = 100, **options) -> torch.Tensor:
    engine = Engine(device="cpu", seed=seed)
    return FCT(**options).score(small_classifier(), load_images(f"digits#0:{count}"), engine).values


def made(images: int, seed: int = 0, *, poisoned: int = 0, shift: float = 2.5, spread: float = 0.5, classes: int = 10):
    """Log-normal scores of clean images, class by class somewhere else; poisoned ones of class 0 lie `shift` above."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=generator)
    logs = spread * torch.randn(images, generator=generator) + torch.randn(classes, generator=generator)[labels]
    truth = torch.zeros(images, dtype=torch.bool)
    truth[torch.nonzero(labels != 0).flatten()[:poisoned]] = True
    logs[truth] = logs[labels == 0].mean() + shift + 0.3 * torch.randn(poisoned, generator=generator)
    return Scores(logs.exp(), torch.where(truth, 0, labels)), truth


def test_scores_are_those_of_a_slow_reference():
    network, data = small_classifier(), load_images("digits#0:60")
    engine = Engine(device="cpu")
    inputs = []
    network.backbone.fc.register_forward_hook(lambda layer, arguments, output: inputs.append(arguments[0]))
    pixels, generator = DeviceImages(data, "cpu").pixels(slice(None)), engine.generator("fct")
    with torch.inference_mode():
        network(pixels)
        for _ in range(3):
            network(transform(pixels, ("rotate", "shift"), generator))
    distances = torch.stack([((inputs[0] - moved) ** 2).mean(dim=1) for moved in inputs[1:]])
    values = FCT(draws=3).score(small_classifier(), data, engine).values
    torch.testing.assert_close(values, distances.mean(dim=0), rtol=1e-4, atol=1e-6)


def test_same_seed_same_scores_other_seed_other_scores():
    assert torch.equal(scored(), scored())
    assert not torch.equal(scored(), scored(seed=1))


@pytest.mark.parametrize("options", [{"transformations": ("rotate",)}, {"transformations": ("flip",)}, {"draws": 2}])
def test_options_of_the_score_change_it(options):
    assert not torch.equal(scored(**options), scored())


def test_more_draws_are_less_noisy():
    spread = [torch.stack([scored(seed, 30, draws=draws) for seed in range(4)]).std(dim=0).mean() for draws in (1, 8)]
    assert spread[1] < 0.6 * spread[0]


def test_the_network_is_left_alone():
    network = small_classifier()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    FCT(draws=1).score(network, load_images("digits#0:20"), Engine(device="cpu"))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_planted_poison_is_found(share):
    scores, truth = made(2000, poisoned=int(share * 2000))
    split = FCT().split(scores)
    assert split.evidence
    assert split.classes == (0,)
    assert (split.poisoned & truth).sum() >= 0.9 * truth.sum()
    assert (split.poisoned & ~truth).sum() <= 0.1 * truth.sum()
    assert (split.clean & truth).sum() <= 0.01 * truth.sum()
    assert "class 0" in split.reason
    assert not (split.clean & split.poisoned).any()
    assert (split.clean | split.poisoned | split.uncertain).all()


@pytest.mark.parametrize("images", [60, 300, 3000])
@pytest.mark.parametrize("tail", ["none", "skewed", "heavy"])
def test_no_poison_is_invented(images, tail):
    for seed in range(5):
        scores, _ = made(images, seed)
        generator = torch.Generator().manual_seed(1000 + seed)
        if tail == "skewed":
            scores = replace(scores, values=scores.values * (0.4 * torch.rand(images, generator=generator).log()).exp())
        if tail == "heavy":
            signs = 2.0 * torch.randint(2, (images,), generator=generator) - 1
            scores = replace(scores, values=(0.4 * signs * torch.rand(images, generator=generator).log()).exp())
        split = FCT().split(scores)
        assert not split.evidence, (seed, split.reason)
        assert not split.poisoned.any()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_poison_that_is_most_of_its_class_is_found(seed):
    """As of a hundred classes one gets a tenth of all images: what stands apart in it are the few clean ones."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(2000) >= 1000
    labels = torch.where(truth, 0, torch.arange(2000) % 10)
    clean, poisoned = 0.45 * torch.randn(2000, generator=generator), 0.27 * torch.randn(2000, generator=generator)
    split = FCT().split(Scores(torch.where(truth, poisoned, clean - 0.8).exp(), labels))
    assert split.classes == (0,)
    assert (split.poisoned & truth).sum() >= 0.8 * truth.sum()
    assert (split.poisoned & ~truth).sum() <= 60
    assert (split.clean & truth).sum() <= 0.02 * truth.sum()


def test_more_classes_must_be_surer():
    fitted = TwoGroups(gain=5.0, separation=3.0, smaller=0.1, clean_to=1.0, poisoned_from=2.0)
    assert fitted.apart(2.0)
    assert fitted.apart(2.0, classes=3)
    assert not fitted.apart(2.0, classes=100)
    assert fitted._replace(gain=7.0).apart(2.0, classes=100)


def test_poison_in_every_class_is_found():
    generator = torch.Generator().manual_seed(0)
    labels, truth = torch.arange(2000) % 10, torch.rand(2000, generator=generator) < 0.1
    logs = 0.4 * torch.randn(2000, generator=generator) + 2.5 * truth
    split = FCT().split(Scores(logs.exp(), labels))
    assert len(split.classes) >= 8
    assert (split.poisoned & truth).sum() > 0.75 * truth.sum()
    assert (split.poisoned & ~truth).sum() < 0.02 * (~truth).sum()


def test_without_labels_all_images_are_one_group():
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(1000) < 100
    split = FCT().split(Scores((0.4 * torch.randn(1000, generator=generator) + 3 * truth).exp()))
    assert split.evidence
    assert split.classes == ()
    assert (split.poisoned == truth).float().mean() > 0.98


def test_the_clean_share_is_taken_from_every_class():
    scores, _ = made(1000)
    for share in (0.5, 0.2):
        clean = FCT(clean_share=share).split(scores).clean
        counts, all_counts = torch.bincount(scores.labels[clean], minlength=10), torch.bincount(scores.labels)
        assert ((counts - share * all_counts).abs() <= 1).all()
        for label in range(10):
            rows = scores.labels == label
            assert scores.values[rows & clean].max() <= scores.values[rows & ~clean].min()


def test_a_higher_separation_asks_for_more():
    scores, _ = made(2000, poisoned=200)
    assert FCT(separation=2.0, significance=0).split(scores).evidence
    assert not FCT(separation=20.0, significance=0).split(scores).evidence


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_overlapping_poison_is_found_where_no_other_class_is_like_that(seed):
    """As in a network that was trained for a moment: an AUROC of 0.9, and no gap between the two."""
    scores, truth = made(3000, seed, poisoned=300, shift=0.75)
    assert FCT(significance=0).split(scores).counts["poisoned"] == 0
    split = FCT().split(scores)
    assert split.classes == (0,)
    assert (split.poisoned & truth).sum() > 0.7 * truth.sum()
    assert (split.poisoned & truth).sum() > 0.6 * split.poisoned.sum()
    assert (split.clean & truth).sum() <= 0.05 * truth.sum()


def test_a_shape_that_all_classes_share_is_no_evidence():
    """Every class has two overlapping groups, as when each class has easy and hard images: none stands out."""
    for seed in range(5):
        scores, _ = made(3000, seed)
        upper = torch.rand(3000, generator=torch.Generator().manual_seed(seed)) < 0.4
        split = FCT().split(replace(scores, values=scores.values * (0.75 * upper).exp()))
        assert not split.evidence, split.reason


def test_the_split_does_not_depend_on_global_generators():
    scores, _ = made(2000, poisoned=200, shift=1.5)
    first = FCT().split(scores)
    np.random.seed(5)
    assert torch.equal(FCT().split(scores).poisoned, first.poisoned)


def test_the_quota_can_be_taken_of_each_class():
    scores, _ = made(2000, poisoned=200)
    split = FCT(decision="quota", per_class=True, clean_share=0.3).split(scores)
    for label in range(10):
        rows = scores.labels == label
        assert int(split.clean[rows].sum()) == int(0.3 * int(rows.sum()))
    assert split.counts["poisoned"] == 100
    everywhere = FCT(decision="quota", clean_share=0.3).split(scores).clean
    assert everywhere.sum() > split.clean.sum() - 10 and not torch.equal(everywhere, split.clean)
    full = FCT(decision="quota", per_class=True, clean_share=0.95).split(scores)
    assert not (full.clean & full.poisoned).any()


def test_the_quota_is_exact_in_spite_of_ties():
    values = torch.zeros(1000)
    values[900:] = 1
    split = FCT(decision="quota").split(Scores(values))
    assert split.counts == {"clean": 200, "uncertain": 750, "poisoned": 50}
    split = FCT(decision="quota", clean_share=0.3, poisoned_share=0.1).split(Scores(values))
    assert split.poisoned.equal(values == 1)
    assert split.counts["clean"] == 300


def test_quotas_that_overlap_are_refused():
    with pytest.raises(ConfigError, match="more than all"):
        FCT(decision="quota", clean_share=0.97).split(Scores(torch.rand(100)))


def test_collapsed_features_are_refused():
    scores, _ = made(1000)
    good = scores.values[:150].clone()
    scores.values[:150] = 0
    with pytest.raises(DataError, match="15% of the images do not move"):
        FCT().split(scores)
    scores.values[50:150] = good[50:]
    assert not FCT().split(scores).poisoned.any()


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="not finite"):
        FCT().split(Scores(torch.tensor([1.0, torch.nan])))


def wrapped(backbone: nn.Module) -> Classifier:
    spec = ModelSpec(
        kind="classifier",
        architecture="own",
        normalization=Normalization.named("none"),
        image_size=32,
        output_size=10,
    )
    return Classifier(backbone, spec).eval()


def test_features_are_the_input_of_the_last_linear_layer_whatever_its_name():
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(3072, 16), nn.ReLU(), nn.Linear(16, 10))
    features = feature_extractor(wrapped(backbone))(torch.rand(2, 3, 32, 32))
    assert features.shape == (2, 16)
    assert (features >= 0).all()


def test_a_network_without_a_linear_layer_is_refused():
    backbone = nn.Sequential(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ArchitectureError, match="no linear layer"):
        FCT().score(wrapped(backbone), load_images("digits#0:4"), Engine(device="cpu"))


@pytest.mark.slow
def test_badnets_is_found_inside_the_suspect(classifiers):
    fct = FCT()
    scores = fct.score(classifiers.backdoored, classifiers.poisoned_data, Engine(device="cpu"))
    poisoned = classifiers.truth.poisoned
    split = fct.split(scores)
    assert roc_auc_score(poisoned, scores.values) > 0.9
    assert split.classes == (classifiers.trigger.target,)
    assert (split.poisoned & poisoned).sum() > 0.6 * poisoned.sum()
    assert (split.poisoned & poisoned).sum() > 0.9 * split.poisoned.sum()
    assert (split.clean & poisoned).sum() <= 0.02 * poisoned.sum()


@pytest.mark.slow
@pytest.mark.parametrize("suspect", ["clean", "backdoored"])
def test_clean_images_give_no_evidence(classifiers, suspect):
    fct = FCT()
    data = load_images("digits#0:1400")
    split = fct.split(fct.score(getattr(classifiers, suspect), data, Engine(device="cpu")))
    assert not split.evidence
    assert split.counts["poisoned"] == 0
