"""Detection of poisoned images without labels: Table II of the PoisonCAM paper, and its ablations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.cells import Cell
from benchmarks.lab import Lab, Subject
from benchmarks.profiles import Profile
from benchmarks.shortcut import take_shortcut
from benchmarks.study import Study
from sanitize.attacks import SSLBackdoor
from sanitize.attacks.base import Poisoned, Truth
from sanitize.data import PatchTrigger
from sanitize.data.triggers import Trigger, htba_patch
from sanitize.detection import detector_named
from sanitize.evaluation.filtering import measure_filtering, measure_windows
from sanitize.trainers import SimCLR
from sanitize.training import Engine

NAME = "poisoncam"
METRICS = {
    "removed": "removed",
    "recall": "recall",
    "precision": "precision",
    "top20_accuracy": "top-20",
    "top50_accuracy": "top-50",
    "catch_rate": "catch rate",
    "iou": "IoU",
    "top_score": "top score",
    "agreement": "agreement",
    "least_recall": "least recall of a trigger",
    "top20_triggers": "triggers in the top 20",
}
PROFILES = {
    "small": Profile(
        name="small",
        train="cifar10-train.parquet#0:1000",
        test="cifar10-test.parquet#0:1000",
        normalization="cifar10",
        image_size=32,
        architecture="small-cnn",
        pretraining={"epochs": 5, "batch_size": 128, "learning_rate": 0.1, "min_crop_scale": 0.5},
    ),
    "imagenette": Profile(
        name="imagenette",
        train="imagenette96-train.parquet#0:1000",
        test="imagenette96-test.parquet#0:1000",
        normalization="imagenet",
        image_size=96,
        architecture="resnet18",
        pretraining={"epochs": 3, "batch_size": 128, "learning_rate": 0.1, "min_crop_scale": 0.5},
        attack={"epochs": 6, "batch_size": 32, "learning_rate": 1e-3},
    ),
    "paper": Profile(
        name="paper",
        train="imagenette96-train.parquet",
        test="imagenette96-test.parquet",
        normalization="imagenet",
        image_size=96,
        architecture="resnet18-cifar",
        pretraining={"epochs": 200, "batch_size": 256, "learning_rate": 0.12},
    ),
}
# STL-10, mean of three targets; "removed" is a number of images.
PAPER = {
    "poisoncam": {"removed": 332.0, "recall": 0.991, "precision": 0.786},
    "patchsearch": {"removed": 744.0, "recall": 0.985, "precision": 0.625},
}
TARGETS = (1, 2, 4)  # car, bird and deer in CIFAR-10; other classes in Imagenette
SIDE = 7 / 32  # of the trigger, in images


def cells() -> list[Cell]:
    """In the order of what they tell: detection, clean data, then masks, windows and clusters."""

    def cell(
        row: str,
        method: str,
        *,
        targets: tuple[int, ...] = TARGETS[:1],
        data: str = "poisoned",
        transformer: bool = False,
        **settings: Any,
    ) -> Cell:
        def measure(lab: Lab) -> dict[str, float | None]:
            architecture = transformer_of(lab.profile) if transformer else None
            return measured(lab, method, targets, data, settings, architecture)

        return Cell(row, method, measure, _published(row, method))

    found = [cell(f"target {TARGETS[0]}", "poisoncam")]
    found += [cell("clean data, backdoored encoder", "poisoncam", data="clean")]
    found += [cell("clean data, clean encoder", "poisoncam", data="innocent")]
    found += [cell(f"target {target}", "poisoncam", targets=(target,)) for target in TARGETS[1:]]
    found += [cell(f"{count} targets", "poisoncam", targets=TARGETS[:count]) for count in (2, 3)]
    found += [cell(f"target {target}", "patchsearch", targets=(target,), flip_images=60) for target in TARGETS]
    found += [cell(f"{count} targets", "patchsearch", targets=TARGETS[:count], flip_images=60) for count in (2, 3)]
    for kind in ("random", "interval", "blocks"):
        found.append(cell(f"masks {kind}", "poisoncam", masks=kind, mask_count=64))
    found += [cell(f"window {share:g} of the trigger", "poisoncam", window=share) for share in (1.0, 1.6, 2.0)]
    found += [cell(f"clusters {count}", "poisoncam", clusters=count) for count in (10, 50, 100)]
    found += [cell(f"flip rule {rule}", "poisoncam", flip_rule=rule) for rule in ("any",)]
    found += [cell(f"vision transformer, target {TARGETS[0]}", "poisoncam", transformer=True)]
    found += [
        cell(f"vision transformer, {row}", "poisoncam", transformer=True, data=data)
        for row, data in (("clean data, backdoored encoder", "clean"), ("clean data, clean encoder", "innocent"))
    ]
    return found


def transformer_of(profile: Profile) -> str:
    """ViT-S at full scale, elsewhere one that two CPU cores can train."""
    if profile.name == "paper":
        return "vit-small"
    return f"{Path(__file__).with_name('tiny_vit.py')}:tiny_vit_{profile.image_size}"


def measured(
    lab: Lab,
    method: str,
    targets: tuple[int, ...],
    data: str,
    settings: dict[str, Any],
    architecture: str | None = None,
) -> dict[str, float | None]:
    """Detection on poisoned data, on clean data with the same encoder, or on clean data with a clean one."""
    poison = poisoned_by_patches(lab, targets)
    side = poison.triggers[0]
    assert isinstance(side, PatchTrigger)
    share = settings.get("window", 1.3)
    values = settings | {"window": round(share * side.size[0])}
    images = poison.data if data == "poisoned" else lab.train
    subject = _clean(lab, architecture) if data == "innocent" else threat(lab, targets, poison, architecture)
    engine = Engine(device=lab.device, precision=lab.precision, seed=lab.seed)
    detector = detector_named(method)(**values)
    scores = detector.score(subject.network, images.without_labels(), engine)
    split = detector.split(scores)
    truth = poison.truth.poisoned if data == "poisoned" else torch.zeros(len(images), dtype=torch.bool)
    assert truth is not None
    boxes = changed_boxes(lab.train.images, poison.data.images) if data == "poisoned" else None
    located = measure_windows(scores, truth, boxes).metrics  # type: ignore[arg-type]  # both detectors give windows
    filtered = measure_filtering(scores, split.poisoned, truth).metrics
    told = _by_trigger(lab, truth, split.poisoned, scores.order[:20])  # type: ignore[attr-defined]
    return filtered | located | dict(split.numbers) | told | {"removed": float(split.poisoned.sum())}


def _by_trigger(lab: Lab, truth: Tensor, removed: Tensor, top: Tensor) -> dict[str, float | None]:
    """The recall of the trigger that is found least, and how many triggers the best windows show."""
    labels = lab.train.require_labels("the benchmark")  # those of poisoned images are their triggers' targets
    targets = torch.unique(labels[truth]).tolist()
    if not targets:
        return {}
    recalls = [float(removed[truth & (labels == target)].double().mean()) for target in targets]
    return {"least_recall": min(recalls), "top20_triggers": float(len(torch.unique(labels[top[truth[top]]])))}


def changed_boxes(before: Tensor, after: Tensor) -> Tensor:
    """(N, 4) top, left, height, width of what differs; height 0 where nothing does."""
    changed = (before != after).any(dim=1)
    boxes = torch.zeros(len(before), 4, dtype=torch.int64)
    for row in torch.nonzero(changed.flatten(1).any(dim=1)).flatten().tolist():
        places = torch.nonzero(changed[row])
        low = places.amin(dim=0)
        boxes[row] = torch.cat([low, places.amax(dim=0) - low + 1])
    return boxes


def preface(profile: Profile) -> str:
    """What was done."""
    told = ", ".join(f"{name} {value}" for name, value in profile.attack.items())
    threat = (
        "The threat model is trained on the poisoned data by SimCLR. "
        if profile.name == "paper"
        else f"The threat model takes a shortcut (`benchmarks/shortcut.py`{told and f'; {told}'}): a SimCLR encoder of "
        f"{profile.pretraining['epochs']} epochs is fine-tuned until the patch decides its features, since honest "
        "self-supervised training does not learn the patch at this scale. "
    )
    return (
        f"Profile `{profile.name}`: `{profile.train}`, {profile.architecture}. Half of the images of the target class "
        f"have an HTBA patch of {SIDE:.0%} of the side; with several targets, each class has a patch of its own. "
        f"{threat}Windows are 1.3 times as large as the patch unless the row says otherwise, and other settings are "
        "the defaults (PatchSearch tries 60 flip images). Values are shares but for `removed` (a number of images), "
        "`agreement` (a ratio) and `triggers in the top 20` (a number). The paper's values are the means of three "
        "targets on STL-10, another data set with another network: they are there for orientation. Nothing is removed "
        "from clean data where `removed` is 0."
    )


def _published(row: str, method: str) -> dict[str, float]:
    return PAPER[method] if row.startswith("target") else {}


def poisoned_by_patches(lab: Lab, targets: tuple[int, ...]) -> Poisoned:
    """Half of each target's class, with a patch of its own; the first patch is the attack's."""
    size = round(SIDE * lab.profile.image_size)
    data, poisoned = lab.train, torch.zeros(len(lab.train), dtype=torch.bool)
    triggers: list[Trigger] = []
    for number, target in enumerate(targets):
        engine = lab.engine(f"poison-{target}")
        patch = htba_patch(size, engine.generator(f"poisoncam/trigger-{target}"))
        given = [PatchTrigger(patch, position="random", target=target, name=f"htba-{target}")] if number else []
        made = SSLBackdoor(target=target, rate=0.5, trigger_size=size).poison(data, engine, triggers=given)
        data, poisoned = made.data, poisoned | made.truth.poisoned
        triggers += made.triggers
    return Poisoned(data, Truth(poisoned, lab.train.require_labels(NAME)), tuple(triggers))


def _clean(lab: Lab, architecture: str | None) -> Subject:
    trainer = SimCLR(**lab.profile.pretraining)
    return lab.keep(
        "poisoncam-clean",
        {"pretraining": lab.profile.pretraining},
        lambda engine: (trainer.train(lab.untrained(architecture), lab.train.without_labels(), engine).network, ()),
        architecture=architecture,
    )


def threat(lab: Lab, targets: tuple[int, ...], poison: Poisoned, architecture: str | None = None) -> Subject:
    """The encoder whose features tell where poison is: trained on it (profile `paper`), or with a shortcut to it."""
    triggers = [trigger for trigger in poison.triggers if isinstance(trigger, PatchTrigger)]
    digests = [trigger.sha256 for trigger in triggers]
    told = {"pretraining": lab.profile.pretraining, "target": targets[0], "trigger": digests[0]}
    if len(targets) > 1:
        told |= {"target": targets, "trigger": digests}
    if lab.profile.name != "paper":
        clean = _clean(lab, architecture)
        return lab.keep(
            "poisoncam-shortcut",
            told | lab.profile.attack,
            lambda engine: (
                take_shortcut(clean.network, lab.train, triggers, engine, **lab.profile.attack),
                triggers,
            ),
            architecture=architecture,
        )
    trainer = SimCLR(**lab.profile.pretraining)
    return lab.keep(
        "poisoncam-poisoned",
        told,
        lambda engine: (
            trainer.train(lab.untrained(architecture), poison.data.without_labels(), engine).network,
            triggers,
        ),
        architecture=architecture,
    )


STUDY = Study(
    NAME,
    "Poisoned images without labels: PoisonCAM, Table II",
    cells,
    METRICS,
    percent=False,
    preface=preface,
    profiles=PROFILES,
)
