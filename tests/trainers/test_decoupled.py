"""Decoupled training: what is trusted, MixMatch against a slow loop, frozen features, options, resuming, bad input."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sanitize.data import DeviceImages, ImageSet, load_images
from sanitize.data.crops import PaddedCrops
from sanitize.errors import ConfigError, DataError
from sanitize.functional.mixmatch import mixing_share
from sanitize.suspects import Network, untrained
from sanitize.trainers import Decoupled, SimCLR, Trained
from sanitize.trainers.base import Filtering
from sanitize.trainers.mixmatch import MixMatch, Trust, lowest
from sanitize.training import Engine, NullRecorder
from tests.test_docs import ROOT, table

SSL: dict[str, Any] = {"epochs": 1, "batch_size": 32, "min_crop_scale": 0.5}
QUICK: dict[str, Any] = {
    "ssl_settings": SSL, "classifier_epochs": 2, "epochs": 2, "batch_size": 16, "crop_padding": 1, "flip": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return load_images("digits#0:96", image_size=16)


def classifier(seed: int = 0, kind: str = "classifier") -> Network:
    return untrained(
        "small-cnn", kind=kind, image_size=16, normalization="half", classes=10 if kind == "classifier" else None,
        seed=seed,
    )  # fmt: skip


def weights(module: nn.Module) -> Tensor:
    return torch.cat([value.flatten().double() for value in module.state_dict().values()])


def trained(data: ImageSet, engine: Engine | None = None, **options: Any) -> Trained:
    return Decoupled(**(QUICK | options)).train(classifier(), data, engine or Engine(device="cpu"))


# ------------------------------------------------------------------------------------------------------- who is trusted


def test_the_lowest_losses_are_trusted_overall_or_of_each_class():
    generator = torch.Generator().manual_seed(0)
    losses, labels = torch.rand(101, generator=generator), torch.randint(3, (101,), generator=generator)
    overall = lowest(losses, labels, 0.3, per_class=False)
    assert int(overall.sum()) == 30 and losses[overall].max() < losses[~overall].min()
    each = lowest(losses, labels, 0.3, per_class=True)
    for label in range(3):
        own = labels == label
        assert int(each[own].sum()) == int(0.3 * int(own.sum()))
        assert losses[own & each].max() < losses[own & ~each].min()
    equal = torch.zeros(10)
    assert lowest(equal, torch.zeros(10), 0.5, per_class=False).tolist() == [True] * 5 + [False] * 5


def test_trust_is_decided_anew_before_each_epoch_but_the_first():
    first, second = (Filtering(torch.zeros(4), torch.tensor(mask)) for mask in ([1, 1, 0, 0], [0, 1, 1, 0]))
    first, second = (Filtering(given.losses, given.trusted.bool()) for given in (first, second))
    trust = Trust(first, lambda network: second, weight=15.0, epochs=3)
    told = [(trust.before_epoch(nn.Identity(), torch.Generator())["still_trusted"], trust.weight) for _ in range(3)]
    assert told == [(1.0, 5.0), (0.5, 10.0), (0.5, 15.0)]
    resumed = Trust(first, None, weight=15.0, epochs=3)
    resumed.load_state_dict(trust.state_dict())
    assert resumed.weight == 15.0 and torch.equal(resumed.now.trusted, second.trusted)


def test_a_step_of_mixmatch_equals_a_slow_loop(images):
    network = classifier().eval()
    trusted = torch.arange(96) < 40
    trust = Trust(Filtering(torch.zeros(96), trusted), None, weight=6.0, epochs=2)
    trust.before_epoch(network, torch.Generator())
    plain = PaddedCrops(0, flip=0.0)
    step = MixMatch(
        DeviceImages(images, "cpu"), 10, trust, plain, lambda x, y: cross_entropy(x, y, reduction="none"), 0.5, 0.75
    )
    with torch.no_grad():
        nn.init.normal_(network.backbone.fc.weight, std=2.0)
        found = step(network, torch.tensor([3, 45, 7]), torch.Generator().manual_seed(5))  # 45 is row 5 of 40

        generator = torch.Generator().manual_seed(5)
        pixels = images.images.float() / 255
        drawn = 40 + torch.randint(56, (3,), generator=generator)
        for _ in range(3):
            torch.rand((3, 3), generator=generator)  # three augmentations that change nothing
        share = mixing_share(0.75, generator)
        order = torch.randperm(9, generator=generator).tolist()
        p = network(pixels[drawn]).softmax(dim=1)
        q = [value**2 / (value**2).sum() for value in p]
        labels = [torch.eye(10)[images.labels[row]] for row in (3, 5, 7)]
        stack, targets = [*pixels[[3, 5, 7]], *pixels[drawn], *pixels[drawn]], [*labels, *q, *q]
        labelled = unlabelled = 0.0
        for i, j in enumerate(order):
            answer = network((share * stack[i] + (1 - share) * stack[j])[None])[0].softmax(dim=0)
            wanted = share * targets[i] + (1 - share) * targets[j]
            if i < 3:
                labelled += float(-(wanted * answer.log()).sum()) / 3
            else:
                unlabelled += float((answer - wanted).square().mean()) / 6
    assert found["labelled"].item() == pytest.approx(labelled, rel=1e-3)
    assert found["unlabelled"].item() == pytest.approx(unlabelled, rel=1e-3)
    assert found["loss"].item() == pytest.approx(labelled + 3.0 * unlabelled, rel=1e-3)


# ---------------------------------------------------------------------------------------------------------- the stages


def test_features_are_trained_without_labels_and_stay_as_they_are_under_the_classifier(images):
    """With epochs=0 the backbone is bit for bit that of SimCLR alone, batch norm's statistics with it."""
    found = trained(images, epochs=0).network
    other = trained(replace(images, labels=images.labels.flip(0)), epochs=0).network
    encoder = classifier(kind="encoder")
    SimCLR(**SSL, flip=0.0, blur=(0.5, 0.5)).train(encoder, images.without_labels(), Engine(device="cpu"))
    for network in (found, other):
        state = {key: value for key, value in network.backbone.state_dict().items() if not key.startswith("fc.")}
        expected = encoder.backbone.state_dict()
        assert all(torch.equal(state[key], expected[key]) for key in expected) and len(state) == len(expected)
    assert not torch.equal(found.backbone.fc.weight, other.backbone.fc.weight)


def test_images_are_ranked_as_they_are_by_the_classifiers_own_loss(images):
    result = trained(images, epochs=0, loss="ce")
    with torch.inference_mode():
        losses = cross_entropy(result.network(images.images.float() / 255), images.labels, reduction="none")
    filtering = result.filterings["classifier"]
    torch.testing.assert_close(filtering.losses, losses, atol=1e-4, rtol=1e-4)
    assert int(filtering.trusted.sum()) == 48
    assert filtering.losses[filtering.trusted].max() <= filtering.losses[~filtering.trusted].min()


def test_given_features_are_not_trained_again(images):
    network = classifier(seed=5)
    before = copy.deepcopy(network.backbone.features.state_dict())
    trainer = Decoupled(**(QUICK | {"ssl": "given", "ssl_settings": {}, "epochs": 0}))
    assert trainer.starts_trained and not Decoupled().starts_trained
    result = trainer.train(network, images, Engine(device="cpu"))
    assert list(result.history) == ["classifier"]
    assert all(torch.equal(value, before[key]) for key, value in network.backbone.features.state_dict().items())


@pytest.mark.parametrize("moment", ["classifier", "mixmatch"])
def test_a_class_that_is_not_trusted_is_told(images, moment):
    labels = images.labels.clone()
    labels[::12] = 9  # eight images of other digits beside the nines
    few = replace(images, labels=labels).subset((images.labels != 9).nonzero().flatten())
    found = trained(few, keep_ratio=0.2, classifier_epochs=30, epochs=0 if moment == "classifier" else 1).findings
    named = [finding for finding in found if finding.rule == "decoupled-class-not-trusted"]
    assert len(named) == 1 and "9" in named[0].evidence["classes"]


def test_the_findings_count_the_classes(images):
    result = trained(images)
    (finding,) = [finding for finding in result.findings if finding.rule == "decoupled-trusted"]
    trusted = result.filterings["mixmatch"].trusted
    for label in range(10):
        own = images.labels == label
        assert finding.evidence["classes"][str(label)] == {"trusted": int(trusted[own].sum()), "all": int(own.sum())}


# ------------------------------------------------------------------------------------------------------------- options

OPTIONS: dict[str, dict[str, Any]] = {
    "ssl": {"ssl": "byol", "ssl_settings": {**SSL, "hidden": 32, "dimensions": 16}},
    "ssl_settings": {"ssl_settings": {**SSL, "temperature": 0.1}},
    "classifier_epochs": {"classifier_epochs": 3},
    "classifier_batch_size": {"classifier_batch_size": 32},
    "classifier_learning_rate": {"classifier_learning_rate": 0.01},
    "loss": {"loss": "ce"},
    "sce_alpha": {"sce_alpha": 1.0},
    "sce_beta": {"sce_beta": 0.1},
    "keep_ratio": {"keep_ratio": 0.3},
    "per_class": {"per_class": True},
    "epochs": {"epochs": 3},
    "steps": {"steps": 2},
    "batch_size": {"batch_size": 8},
    "learning_rate": {"learning_rate": 1e-3},
    "labelled_loss": {"labelled_loss": "sce"},
    "temperature": {"temperature": 1.0},
    "mixing": {"mixing": 4.0},
    "unlabelled_weight": {"unlabelled_weight": 1.0},
    "resplit": {"resplit": False},
    "crop_padding": {"crop_padding": 3},
    "flip": {"flip": 0.5},
}


@pytest.fixture(scope="module")
def plainly(images) -> Tensor:
    return weights(trained(images).network)


def test_every_option_is_among_those():
    assert set(OPTIONS) == set(Decoupled.model_fields)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_changes_the_result(images, plainly, option):
    assert not torch.equal(weights(trained(images, **OPTIONS[option]).network), plainly)


def test_moco_can_train_the_features(images):
    settings = {**SSL, "hidden": 32, "dimensions": 16}
    assert list(trained(images, ssl="moco-v3", ssl_settings=settings).history) == ["moco-v3", "classifier", "mixmatch"]


def test_steps_are_as_many_as_asked_for(images):
    result = trained(images, steps=5, epochs=3)
    assert result.history["mixmatch"].steps == 15
    assert trained(images).history["mixmatch"].steps == 2 * (48 // 16)


def test_the_monitor_is_logged(images):
    test = load_images("digits#1400:1450", image_size=16)
    monitored = Decoupled(**QUICK).train(classifier(), images, Engine(device="cpu"), monitor=(images, test))
    assert "knn_accuracy" in monitored.metrics
    assert all(0 <= values["test_accuracy"] <= 1 for values in monitored.history["mixmatch"].epochs)


def test_the_page_lists_the_parameters_of_the_code():
    assert table(ROOT / "docs/methods/decoupled.md", "parameter") == [
        [f"`{name}`", str(item["value"]), str(item["paper"]), item["description"]]
        for name, item in Decoupled().parameters().items()
    ]


# ------------------------------------------------------------------------------------------------------------ resuming


class Stopping(NullRecorder):
    """Ends the work when the last epoch of a stage is told, before its checkpoint."""

    def __init__(self, stage: str) -> None:
        self.stage_to_stop = stage

    def metrics(self, stage, values, step) -> None:
        if stage == self.stage_to_stop and step == 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stage", ["simclr", "classifier", "mixmatch"])
def test_it_resumes_at_any_stage_to_the_same_bits(images, tmp_path, stage):
    options = {"ssl_settings": {**SSL, "epochs": 2}}
    whole = trained(images, **options)
    with pytest.raises(KeyboardInterrupt):
        trained(images, Engine(device="cpu", checkpoints=tmp_path, recorder=Stopping(stage)), **options)
    for _ in range(2):  # and once more when all is finished
        again = trained(images, Engine(device="cpu", checkpoints=tmp_path, resume=True), **options)
        assert torch.equal(weights(again.network), weights(whole.network))
        for moment, filtering in whole.filterings.items():
            assert torch.equal(again.filterings[moment].trusted, filtering.trusted)
            assert torch.equal(again.filterings[moment].losses, filtering.losses)


# ----------------------------------------------------------------------------------------------------------- bad input


def test_what_cannot_be_used_is_said(images):
    engine = Engine(device="cpu")

    def train(network: Network | None = None, data: ImageSet = images, **options: Any) -> None:
        Decoupled(**(QUICK | options)).train(network or classifier(), data, engine)

    with pytest.raises(ConfigError, match="this is an encoder"):
        train(classifier(kind="encoder"))
    with pytest.raises(DataError, match="16 px, the network takes 32 px"):
        train(untrained("small-cnn", kind="classifier", image_size=32, classes=10))
    with pytest.raises(DataError, match="needs labels"):
        train(data=images.without_labels())
    with pytest.raises(DataError, match="do not fill one batch of 512"):
        train(ssl_settings={"batch_size": 512})
    with pytest.raises(DataError, match="is none"):
        train(keep_ratio=0.001)
    with pytest.raises(DataError, match="of each class is none"):
        train(keep_ratio=0.05, per_class=True)
    with pytest.raises(ConfigError, match="Did you mean epochs"):
        Decoupled(ssl_settings={"epoch": 3})
    with pytest.raises(ConfigError, match="no effect"):
        Decoupled(ssl="given", ssl_settings={"epochs": 3})
    headless = classifier()
    headless.backbone.fc = nn.Sequential(nn.Flatten(), nn.Conv1d(128, 10, 1))
    with pytest.raises(ConfigError, match="no linear head"):
        train(headless)


def test_after_an_error_the_head_is_back_in_its_place(images):
    network = classifier()
    with pytest.raises(KeyboardInterrupt):
        Decoupled(**QUICK).train(network, images, Engine(device="cpu", recorder=Stopping("classifier")))
    assert network.spec.kind == "classifier" and network.backbone.fc.out_features == 10


# ------------------------------------------------------------------------------------------------------ what it is for


@pytest.mark.slow
def test_a_classifier_of_poisoned_digits_has_no_backdoor(classifiers):
    """The same images that planted the backdoor of the shared classifier, half of them."""
    data, poisoned = classifiers.poisoned_data.subset(slice(700)), classifiers.truth.poisoned[:700]
    engine = Engine(device="cpu")
    before = classifiers.evaluator.measure(classifiers.backdoored, engine).metrics
    trainer = Decoupled(
        ssl_settings={"epochs": 12, "batch_size": 64, "learning_rate": 0.1, "min_crop_scale": 0.5, "blur": (0, 0)},
        classifier_epochs=20, epochs=8, batch_size=32, crop_padding=2, flip=0.0, per_class=True,
    )  # fmt: skip
    network = untrained("small-cnn", kind="classifier", image_size=32, normalization="half", classes=10)
    result = trainer.train(network, data, engine)
    after = classifiers.evaluator.measure(network, engine).metrics
    assert before["attack_success_rate"] > 0.9
    assert after["attack_success_rate"] < 0.2
    assert after["clean_accuracy"] > 0.85
    for moment, allowed in (("classifier", 0.35), ("mixmatch", 0.2)):
        trusted = result.filterings[moment].trusted
        assert int((trusted & poisoned).sum()) <= allowed * int(poisoned.sum())
