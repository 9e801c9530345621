"""Encoders trained on poisoned images and on what detectors leave of them: Tables I and III of the PoisonCAM paper."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks.cells import Cell, Measure
from benchmarks.lab import Lab, Subject
from benchmarks.poisoncam import PROFILES, SIDE, TARGETS, poisoned_by_patches, threat
from benchmarks.profiles import Profile
from benchmarks.study import Study
from sanitize.data import ImageSet
from sanitize.detection import detector_named
from sanitize.evaluation import EncoderEvaluator
from sanitize.trainers import SimCLR
from sanitize.training import Engine

METRICS = {
    "clean_accuracy": "ACC",
    "base_rate": "FP rate",
    "poison_accuracy": "ACC poisoned",
    "attack_success_rate": "ASR",
}
FILTERS: dict[str, tuple[str | None, bool]] = {
    "none": (None, False),
    "patchsearch": ("patchsearch", False),
    "poisoncam": ("poisoncam", False),
    "i-cutmix": (None, True),
    "poisoncam + i-cutmix": ("poisoncam", True),
}
"""Column -> detector, and whether the training mixes images."""
# STL-10, in %: METRICS without a defence, after PatchSearch, after PoisonCAM, for car, bird and deer.
PUBLISHED = {
    1: "62.0/1.8/41.2/41.3 61.8/1.8/40.8/3.3 62.8/1.1/43.6/3.1",
    2: "63.2/5.1/50.8/28.7 62.6/3.1/56.2/7.1 65.4/4.9/61.0/5.1",
    4: "65.8/2.9/43.8/25.1 64.0/3.3/42.2/4.8 63.8/4.0/51.0/4.2",
}
# ImageNet-100, laptop: accuracies in % and false positives among 4,950 images, by the epochs of 200.
BY_EPOCHS = {
    20: "24.4/47/18.7/114",
    60: "51.8/45/27.8/2390",
    100: "64.1/40/38.9/2238",
    140: "68.2/38/40.8/2325",
    200: "69.2/43/38.0/2593",
}
OTHERS = 4950
EPOCHS = {"small": 60, "imagenette": 10, "paper": 200}


def filters() -> list[Cell]:
    """Table I: target x what is done about the poison before, or in, the training."""
    found = []
    for target in TARGETS:
        published = dict(zip(FILTERS, PUBLISHED[target].split(), strict=False))
        for column in FILTERS:
            values = [float(value) / 100 for value in published.get(column, "").split("/") if value]
            found.append(
                Cell(f"target {target}", column, _trained_on(target, column), dict(zip(METRICS, values, strict=False)))
            )
    return found


def epochs() -> list[Cell]:
    """Table III: how long the encoder is trained on the poisoned images."""
    found = []
    for number, text in BY_EPOCHS.items():
        accuracy, alarms, poison_accuracy, hits = map(float, text.split("/"))
        values = (accuracy / 100, alarms / OTHERS, poison_accuracy / 100, hits / OTHERS)
        share = number / max(BY_EPOCHS)
        row = f"{share:.0%} of the epochs"
        found.append(Cell(row, "none", _trained_for(share), dict(zip(METRICS, values, strict=True))))
    return found


def _trained_on(target: int, column: str) -> Measure:
    def measure(lab: Lab) -> dict[str, float | None]:
        method, cutmix = FILTERS[column]
        removed = _removed(lab, target, method) if method else torch.zeros(len(lab.train), dtype=torch.bool)
        encoder = _encoder(lab, target, f"after {method}", ~removed, cutmix=cutmix)
        undefended = _measured(lab, _encoder(lab, target, "after None", torch.ones_like(removed)))
        taken = undefended["attack_success_rate"]
        return _measured(lab, encoder) | {"removed": float(removed.sum()), "suspect_attack_success_rate": taken}

    return measure


def _trained_for(share: float) -> Measure:
    def measure(lab: Lab) -> dict[str, float | None]:
        everything = torch.ones(len(lab.train), dtype=torch.bool)
        found = _measured(lab, _encoder(lab, TARGETS[0], "after None", everything, share=share))
        return found | {"suspect_attack_success_rate": found["attack_success_rate"]}

    return measure


def _removed(lab: Lab, target: int, method: str) -> Tensor:
    """What a detector removes, with the threat model of the study `poisoncam`; searched once, and kept."""
    poison = poisoned_by_patches(lab, (target,))
    subject = threat(lab, (target,), poison)
    settings = {"window": round(1.3 * round(SIDE * lab.profile.image_size))}
    detector = detector_named(method)(**settings | ({"flip_images": 60} if method == "patchsearch" else {}))
    file = lab.work / "removed" / f"{lab.key(method, subject.key, detector.model_dump())}.npy"
    if not file.is_file():
        engine = Engine(device=lab.device, precision=lab.precision, seed=lab.seed)
        data = poison.data.without_labels()
        removed = detector.split(detector.score(subject.network, data, engine)).poisoned
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(partial := file.with_suffix(".partial.npy"), removed.numpy())
        partial.rename(file)
    return torch.from_numpy(np.load(file))


def _encoder(lab: Lab, target: int, name: str, kept: Tensor, *, cutmix: bool = False, share: float = 1.0) -> Subject:
    poison = poisoned_by_patches(lab, (target,))
    settings = lab.profile.pretraining | {"epochs": round(share * EPOCHS[lab.profile.name]), "cutmix": cutmix}
    data: ImageSet = poison.data.without_labels().subset(kept)
    return lab.keep(
        f"poisoned-training-{target}-{name.replace(' ', '-')}",
        {"pretraining": settings, "data": data.sha256},
        lambda engine: (SimCLR(**settings).train(lab.untrained(), data, engine).network, poison.triggers),
    )


def _measured(lab: Lab, encoder: Subject) -> dict[str, float | None]:
    evaluator = EncoderEvaluator(probe_data=lab.defender_images(), test_data=lab.test, triggers=encoder.triggers)
    return evaluator.measure(encoder.network, lab.engine("evaluation")).metrics


def preface(profile: Profile) -> str:
    """What was done."""
    return (
        f"Profile `{profile.name}`: SimCLR for {EPOCHS[profile.name]} epochs on `{profile.train}`, "
        f"{profile.architecture}, tested on `{profile.test}`; the linear probe is fitted to {profile.share:.0%} of the "
        f"training images, clean and labelled. Half of the images of the target class have an HTBA patch of {SIDE:.0%} "
        "of the side. What is removed is found with the threat model of the study `poisoncam`; but for the profile "
        "`paper` that is not the encoder that is trained here, but one with a shortcut. Shares of the epochs are "
        "trainings of their own, each with its own schedule; the paper looks into one training. `FP rate` is the "
        "share of clean images of other classes that the probe puts into the target class. The paper's values are of "
        "STL-10 (by detector) and ImageNet-100 (by epochs), with other networks: they are there for orientation."
    )


PARTS = {
    "filters": Study(
        "poisoned-training",
        "Training on what is left: PoisonCAM, Table I",
        filters,
        METRICS,
        preface=preface,
        profiles=PROFILES,
    ),
    "epochs": Study(
        "poisoned-training-epochs",
        "Training on poisoned images, by epochs: PoisonCAM, Table III",
        epochs,
        METRICS,
        preface=preface,
        profiles=PROFILES,
    ),
}
