"""Purifications of classifiers, D-ST and FCT: the attacks of the D-BR paper, and a suspect that others made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, softmax

from benchmarks.cells import Cell, Measure
from benchmarks.lab import Lab
from benchmarks.profiles import Profile, data_folder
from benchmarks.study import Study
from sanitize.attacks import Poisoned, PoisoningAttack, attack_named
from sanitize.attacks.base import Truth
from sanitize.data import DeviceImages, ImageSet, load_images
from sanitize.data.triggers import Trigger
from sanitize.dataset_job import WARM_UP
from sanitize.defenses import Need, Purifier, defense_named
from sanitize.detection import FCT, Scores
from sanitize.detection.fct import feature_extractor
from sanitize.evaluation import ClassifierEvaluator
from sanitize.evaluation.filtering import measure_filtering
from sanitize.recipes import load_recipe
from sanitize.suspects import Network, read_tensors, rebuild
from sanitize.trainers import DST, Supervised, Trainer
from sanitize.training import Engine
from sanitize.types import Normalization

TARGET = 0
METRICS = {"clean_accuracy": "ACC", "attack_success_rate": "ASR", "poison_accuracy": "PA"}
THIRD_PARTY, CLEAN = "third-party badnets", "clean"
PURIFICATIONS = ("d-br", "uau", "i-bau", "nad", "fine-tune", "clp", "neural-cleanse")
# ACC / ASR in %, as printed: backdoored, D-BR, D-ST (CIFAR-10).
PAPER = {
    "badnets": "91.64/100.00 92.83/0.40 92.77/0.03",
    "badnets, all-to-all": "92.79/88.01 92.61/0.56 89.22/2.05",
    "trojan": "91.91/100.00 92.21/0.76 93.72/0.00",
    "blend-strip": "92.09/99.97 92.40/0.06 93.59/0.00",
    "blend-kitty": "92.69/99.99 92.11/0.14 91.82/0.00",
    "sig": "92.88/99.69 92.73/0.24 90.07/0.00",
    "cl": "93.20/93.34 92.08/0.00 90.46/6.40",
}
POISON_RATE = 0.1
SUPERVISED: dict[str, dict[str, Any]] = {
    "paper": {"epochs": 200, "learning_rate": 0.01},
    "small": {"epochs": 20, "batch_size": 64, "crop_padding": 1},
    "digits": {"epochs": 12, "batch_size": 64, "crop_padding": 2, "flip": 0.0},
    "cifar100-paper": {"epochs": 200, "learning_rate": 0.01},
    "cifar100-small": {"epochs": 20, "batch_size": 64, "crop_padding": 1},
    "imagenette-paper": {"epochs": 200, "learning_rate": 0.01},  # the paper fine-tunes a network trained on ImageNet
    "imagenette-small": {"epochs": 20, "batch_size": 64, "crop_padding": 4},
}
D_ST: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {"epochs": 30, "batch_size": 128, "learning_rate": 0.1},
    "digits": load_recipe("d-st-small").parameters,
    "cifar100-paper": {},
    "cifar100-small": {"epochs": 30, "batch_size": 128, "learning_rate": 0.1},
}
SURROGATE: dict[str, dict[str, Any]] = {"paper": {}, "small": {"surrogate": "small-cnn", "surrogate_epochs": 8}}
SAMPLE_METRICS = ("fct", "fct in the suspect", "loss", "feature norm", "entropy")


def purifications() -> list[Cell]:
    """Attack x purification, and D-ST, which trains anew. D-BR gets the poisoned data, the others clean images."""
    cells = []
    for row in (*PAPER, THIRD_PARTY, CLEAN):
        columns = ("none", *PURIFICATIONS) + (("d-st",) if row != THIRD_PARTY else ())
        cells += purified_row(row, columns, PAPER.get(row, ""))
    return cells


def purified_row(row: str, columns: Sequence[str], published: str) -> list[Cell]:
    """The cells of one attack; `published` as in `PAPER`, as far as there is something."""
    values = dict(zip(("none", "d-br", "d-st"), published.split(), strict=False))
    return [Cell(row, column, _purified(row, column), _published(values.get(column))) for column in columns]


def sample_metrics() -> list[Cell]:
    """Which score of a sample tells poisoned images from clean ones: AUROC."""
    return [Cell(row, column, _separated(row, column)) for row in PAPER for column in SAMPLE_METRICS]


def _published(values: str | None) -> dict[str, float]:
    return {name: float(value) / 100 for name, value in zip(METRICS, values.split("/"), strict=False)} if values else {}


def poisoned(lab: Lab, row: str, triggers: Sequence[Trigger] = ()) -> Poisoned:
    """The training images with an attack in them, with triggers in place of its own; as they are for ``clean``."""
    if row == CLEAN:
        labels = lab.train.require_labels("the benchmark")
        return Poisoned(lab.train, Truth(torch.zeros(len(labels), dtype=torch.bool), labels), ())
    name, _, mode = row.partition(", ")
    made = attack_named(name)
    assert issubclass(made, PoisoningAttack)
    settings: dict[str, Any] = {"rate": POISON_RATE, "target": TARGET}
    settings |= {"label_mode": mode} if mode else {}
    settings |= {k: v for k, v in SURROGATE.get(lab.profile.name, {}).items() if k in made.model_fields}
    return made(**settings).poison(lab.train, lab.engine(lab.key(f"{row}-poison", settings)), triggers=triggers)


def suspect(
    lab: Lab, row: str, triggers: Sequence[Trigger] = ()
) -> tuple[Network, ImageSet, tuple[Trigger, ...], Truth]:
    """A classifier, the data that it was trained on, the attacker's triggers, and which images are poisoned."""
    if row == THIRD_PARTY:
        return third_party()
    made, settings = poisoned(lab, row, triggers), SUPERVISED[lab.profile.name]
    told = {"supervised": settings, "rate": POISON_RATE, "target": TARGET}
    kept = lab.keep(
        f"classifier-{row}",
        told | ({"triggers": [trigger.sha256 for trigger in triggers]} if triggers else {}),
        lambda engine: (
            Supervised(**settings).train(lab.untrained(kind="classifier"), made.data, engine).network,
            made.triggers,
        ),
        kind="classifier",
    )
    return kept.network, made.data, made.triggers, made.truth


def third_party() -> tuple[Network, ImageSet, tuple[Trigger, ...], Truth]:
    """The checkpoint that others made, and 2,750 images of which 250 have its trigger and its target's label."""
    folder = data_folder().parent / "suspects" / "badnets-cifar10"
    trigger = Trigger.from_yaml(folder / "trigger.yaml")
    assert isinstance(trigger.target, int)
    network = rebuild(
        read_tensors(folder / "checkpoint.pth", allow_stubbed=True),
        kind="classifier",
        architecture=f"{folder / 'small_vgg.py'}:small_vgg",
        normalization=Normalization.named("none"),
        image_size=32,
    ).network
    data = load_images(f"{data_folder() / 'cifar10-train.parquet'}#0:2750")
    labels = data.require_labels("the benchmark")
    others = torch.nonzero(labels != trigger.target).flatten()
    chosen = torch.zeros(len(data), dtype=torch.bool)
    chosen[others[torch.randperm(len(others), generator=torch.Generator().manual_seed(0))[:250]]] = True
    images = data.images.clone()
    images[chosen] = (255 * trigger.apply(images[chosen] / 255)).round().to(torch.uint8)
    wrong = torch.where(chosen, trigger.target, labels)
    return network, replace(data, images=images, labels=wrong), (trigger,), Truth(chosen, labels)


def _purified(row: str, column: str) -> Measure:
    def measure(lab: Lab) -> dict[str, float | None]:
        network, data, triggers, _ = suspect(lab, row)
        test = load_images(str(data_folder() / "cifar10-test.parquet")) if row == THIRD_PARTY else lab.test
        evaluator = ClassifierEvaluator(test_data=test, triggers=triggers)
        before = evaluator.measure(network, lab.engine("evaluation")).metrics

        def engine(method: Purifier | Trainer) -> Engine:
            return lab.engine(lab.key(f"{row}-{column}", SUPERVISED[lab.profile.name], method.model_dump()))

        if column == "d-st":
            trainer = DST(**D_ST[lab.profile.name])
            network = trainer.train(lab.untrained(kind="classifier"), data, engine(trainer)).network
        elif column != "none":
            purifier = defense_named(column)(**lab.profile.defenses.get(column, {}))
            assert isinstance(purifier, Purifier)
            network = purifier.purify(network, _defenders(lab, row, data, purifier), engine(purifier)).network
        found = evaluator.measure(network, lab.engine("evaluation")).metrics
        return found | {"suspect_attack_success_rate": before.get("attack_success_rate")}

    return measure


def _defenders(lab: Lab, row: str, data: ImageSet, purifier: Purifier) -> ImageSet:
    if purifier.name == "d-br":
        return data
    clean = lab.defender_images()
    if row == THIRD_PARTY:
        clean = load_images(f"{data_folder() / 'cifar10-train.parquet'}#2750:5250")
    return clean if Need.LABELS in purifier.needs else clean.without_labels()


def _separated(row: str, column: str) -> Measure:
    def measure(lab: Lab) -> dict[str, float | None]:
        network, data, _, truth = suspect(lab, row)
        warm_up = Supervised(**WARM_UP)
        engine = lab.engine(lab.key(f"{row}-{column}", warm_up.model_dump()))
        if column == "fct":  # as `sanitize dataset` trains where no model is given
            scores = FCT().score(warm_up.train(lab.untrained(kind="classifier"), data, engine).network, data, engine)
        elif column == "fct in the suspect":
            scores = FCT().score(network, data, engine)
        else:
            scores = Scores(_sample_metric(column, network, data, lab))
        nothing = torch.zeros(len(data), dtype=torch.bool)  # scores are judged here, and no removal
        return {"auroc": measure_filtering(scores, nothing, truth.poisoned).metrics["auroc"]}

    return measure


def _sample_metric(name: str, network: Network, data: ImageSet, lab: Lab) -> Tensor:
    """A score of each image by the trained suspect; larger is more suspicious."""
    engine = lab.engine("sample-metrics")
    images = DeviceImages(data.without_labels(), engine.device)
    if name == "feature norm":
        features = engine.forward(feature_extractor(network), images.pixels, len(images))
        norms: Tensor = features.norm(dim=1)
        return norms
    logits = engine.forward(network, images.pixels, len(images))
    if name == "loss":
        return -cross_entropy(logits, data.require_labels("the benchmark"), reduction="none")
    shares = softmax(logits, dim=1)
    return (shares * shares.clamp(min=1e-12).log()).sum(dim=1)


def settings(profile: Profile) -> str:
    """Settings of a profile in a paragraph."""
    training = f"supervised training with {SUPERVISED[profile.name]}"
    if profile.name in D_ST:
        training += f", D-ST with {D_ST[profile.name]}"
    return (
        f"Profile `{profile.name}`: {profile.architecture} trained on `{profile.train}` with {POISON_RATE:.0%} of the "
        f"eligible images poisoned, target {TARGET}, tested on `{profile.test}`; {training}. Settings of defences "
        f"beside their defaults: {profile.settings_of('classifier')}. D-BR and D-ST get the poisoned training images, "
        f"the other methods {profile.share:.0%} of the clean ones, with labels where they need them. The last epoch is "
        "the result. Success rates are over images that are not of the target class."
    )


def settings_with_third_party(profile: Profile) -> str:
    """The same, and where the row comes from that others made."""
    return (
        f"{settings(profile)} The row `{THIRD_PARTY}` is a checkpoint that others made, tested on all of cifar10-test; "
        "D-BR gets 2,750 images of which 250 have the trigger and its label, the other methods the next 2,500 clean "
        "ones."
    )


PARTS = {
    "purification": Study(
        "classifiers", "Purifying classifiers", purifications, METRICS, preface=settings_with_third_party
    ),
    "samples": Study(
        "classifiers-samples",
        "Telling poisoned samples",
        sample_metrics,
        {"auroc": "AUROC"},
        percent=False,
        preface=settings,
    ),
}
