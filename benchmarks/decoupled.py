"""Decoupled training: tables 4 and 5 of its paper, baselines without attention, and the separation of the losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.cells import Cell, Measure, run_cells
from benchmarks.lab import Lab, Subject
from benchmarks.pieces import time_limit
from benchmarks.profiles import Profile, profile_named
from benchmarks.study import Circumstances
from benchmarks.tables import write_table
from sanitize.attacks import Poisoned, PoisoningAttack, attack_named
from sanitize.defenses import Purifier, defense_named
from sanitize.detection import Scores
from sanitize.evaluation import ClassifierEvaluator
from sanitize.evaluation.filtering import measure_filtering
from sanitize.reporting.figures import COLORS, label_axes, to_png
from sanitize.suspects import Network
from sanitize.trainers import Decoupled, SimCLR, Supervised
from sanitize.trainers.base import Filtering

TARGET = 3
METRICS = {
    "clean_accuracy": "CA",
    "attack_success_rate": "ASR",
    "remaining_poison_share": "poison among the trusted",
    "auroc": "AUROC of the losses",
}
FULL, SUSPECT = "decoupled", "none"
ABLATIONS: dict[str, dict[str, Any]] = {
    FULL: {},
    "no attention": {},
    "no attention, equal size": {},
    "CE, frozen features": {"loss": "ce", "epochs": 0},
    "SCE, frozen features": {"epochs": 0},
    "a share of each class": {"per_class": True},
}
BASELINES = ("nad", "neural-cleanse")
NOT_AT_SMALL_SCALE = ("a share of each class", *BASELINES)

# Table 4 (and table 5, whose first and last rows are the same): clean accuracy and success rate, CIFAR-10.
PAPER: dict[str, dict[str, tuple[float, float]]] = {
    "badnets": {
        SUSPECT: (0.9482, 1.0),
        "neural-cleanse": (0.9425, 0.0233),
        "nad": (0.9047, 0.0120),
        "no attention": (0.9241, 0.0096),
        "CE, frozen features": (0.8225, 0.0520),
        "SCE, frozen features": (0.8234, 0.0512),
        FULL: (0.9381, 0.0055),
    },
    "blended": {
        SUSPECT: (0.9424, 0.9825),
        "neural-cleanse": (0.9301, 0.0570),
        "nad": (0.8972, 0.0151),
        "no attention": (0.9208, 0.0173),
        "CE, frozen features": (0.8185, 0.1219),
        "SCE, frozen features": (0.8230, 0.0624),
        FULL: (0.9297, 0.0097),
    },
    "tuap": {
        SUSPECT: (0.8875, 0.9882),
        "neural-cleanse": (0.8784, 0.0432),
        "nad": (0.8520, 0.0018),
        "no attention": (0.8720, 0.0223),
        "CE, frozen features": (0.6820, 0.1360),
        "SCE, frozen features": (0.6607, 0.1071),
        FULL: (0.8820, 0.0021),
    },
}
ATTACKS = {"badnets": "badnets", "blended": "blend-kitty", "tuap": "tuap"}
OF_TARGET = ", 30 % of the target class"  # the paper's 1,500 images: 3 % of CIFAR-10
POISON: dict[str, dict[str, float]] = {
    "paper": {"": 0.05, OF_TARGET: 0.03},
    "small": {"": 0.1},
    "digits": {"": 0.1},
}
"""Profile -> end of a row's name -> share of all images that is poisoned."""

SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {
        "supervised": {"epochs": 100},
        "surrogate": {"surrogate": "resnet18-cifar", "surrogate_epochs": 30},
        "features": {"epochs": 100, "batch_size": 512, "learning_rate": 0.24, "blur": (0.5, 0.5)},
        "training": {},
    },
    "small": {
        "supervised": {"epochs": 20, "batch_size": 64, "crop_padding": 1},
        "surrogate": {"surrogate": "small-cnn", "surrogate_epochs": 8},
        "features": {"epochs": 12, "batch_size": 128, "learning_rate": 0.1},
        "training": {"classifier_epochs": 20, "epochs": 8},
    },
    "digits": {
        "supervised": {"epochs": 12, "batch_size": 64, "crop_padding": 2, "flip": 0.0},
        "surrogate": {"surrogate": "small-cnn", "surrogate_epochs": 8},
        "features": {"epochs": 25, "batch_size": 128, "learning_rate": 0.1, "min_crop_scale": 0.5, "flip": 0.0},
        "training": {"classifier_epochs": 20, "epochs": 10, "batch_size": 32, "crop_padding": 2, "flip": 0.0},
    },
}


def cells(profile: Profile) -> list[Cell]:
    """Attacks x what is done against them; some columns not with the profile `small`, where they take too long."""
    columns = [
        column
        for column in (SUSPECT, *ABLATIONS, *BASELINES)
        if profile.name != "small" or column not in NOT_AT_SMALL_SCALE
    ]
    return [
        Cell(f"{attack}{suffix}", column, _measure(attack, suffix, column), _published(attack, column))
        for suffix in POISON[profile.name]
        for column in columns
        for attack in ATTACKS
    ]


def conduct(how: Circumstances) -> None:
    """Run what has no result yet, then write page and figure (also when time ran out)."""
    profile = profile_named(how.profile)
    if profile.name not in SETTINGS:
        raise SystemExit(f"no settings for profile {profile.name}; known are {', '.join(SETTINGS)}.")
    made = cells(profile)
    rows, columns = how.rows or [cell.row for cell in made], how.columns or [cell.column for cell in made]
    wanted = [cell for cell in made if cell.row in rows and cell.column in columns]
    if not wanted:
        known = [", ".join(sorted({getattr(cell, name) for cell in made})) for name in ("row", "column")]
        raise SystemExit(f"no such cell; rows: {known[0]}; columns: {known[1]}")
    how.work.mkdir(parents=True, exist_ok=True)
    with time_limit(how.minutes):
        for seed in how.seeds:
            lab = Lab(profile, how.work, seed=seed, device=how.device, precision=how.precision)
            run_cells("decoupled", wanted, lab, tracking_uri=how.tracking_uri or f"sqlite:///{how.work / 'mlflow.db'}")
    results = how.work / "results" / f"decoupled-{profile.name}"
    page = how.output / f"decoupled-{profile.name}.md"
    write_table(page, f"Decoupled training ({profile.name})", _preface(profile), made, results, METRICS, percent=True)
    plot_losses(how.work / "losses" / profile.name, page.with_suffix(".png"))
    print(f"wrote {page}")


def _preface(profile: Profile) -> str:
    told = "; ".join(f"{name}: {json.dumps(values)}" for name, values in SETTINGS[profile.name].items())
    rates = ", ".join(
        f"{share:.0%} of all images{name and f' ({name[2:]})'}" for name, share in POISON[profile.name].items()
    )
    return (
        f"Profile `{profile.name}`: trained on `{profile.train}` with poison, tested on `{profile.test}`, "
        f"{profile.architecture}-attention; the column `none` and those with `no attention`, {profile.architecture} or "
        f"a narrower one of the attentive network's size. Poisoned: {rates}; target {TARGET}, all-to-one. Settings "
        f"beside the defaults: {told}. Columns with the same network start from the same SimCLR features. The last "
        "epoch is the result. Success rates are over images that are not of the target class. The paper's rows of CE "
        "and SCE are read as stages 1 and 2 alone; its architecture is a ResNet-34, its poison 1,500 images. "
        f"The picture `decoupled-{profile.name}.png` shows the losses on the frozen features. "
        "Minutes are of wall time, and of the last start where a cell was interrupted."
    )


def _published(attack: str, column: str) -> dict[str, float]:
    if column not in PAPER[attack]:
        return {}
    accuracy, success = PAPER[attack][column]
    return {"clean_accuracy": accuracy, "attack_success_rate": success}


def _measure(attack: str, suffix: str, column: str) -> Measure:
    def measure(lab: Lab) -> dict[str, float | None]:
        poisoned = _poison(lab, attack, suffix)
        suspect = _suspect(lab, attack, suffix, poisoned)
        before = _evaluated(lab, suspect.network, poisoned)
        measured = before
        if column in BASELINES:
            measured = _evaluated(lab, _purified(lab, suspect, column), poisoned)
        elif column != SUSPECT:
            measured = _retrained(lab, attack, suffix, column, poisoned)
        return measured | {"suspect_attack_success_rate": before["attack_success_rate"]}

    return measure


def _poison(lab: Lab, attack: str, suffix: str) -> Poisoned:
    made = attack_named(ATTACKS[attack])
    surrogate = SETTINGS[lab.profile.name]["surrogate"] if attack == "tuap" else {}
    settings = {"target": TARGET, "rate": POISON[lab.profile.name][suffix], "rate_of": "all", **surrogate}
    attacker = made(**settings)
    assert isinstance(attacker, PoisoningAttack)
    return attacker.poison(lab.train, lab.engine(lab.key("poison", settings | {"attack": attack})))


def _suspect(lab: Lab, attack: str, suffix: str, poisoned: Poisoned) -> Subject:
    """What the same data makes of a classifier without a defence."""
    trainer = Supervised(**SETTINGS[lab.profile.name]["supervised"])
    return lab.keep(
        f"supervised-{attack}",
        {"trainer": trainer.model_dump(), "data": poisoned.data.sha256},
        lambda engine: (trainer.train(lab.untrained(kind="classifier"), poisoned.data, engine).network, ()),
        kind="classifier",
    )


def _purified(lab: Lab, suspect: Subject, method: str) -> Network:
    """The defences that need clean images: 5 % of the training set, as it was before the attack."""
    purifier = defense_named(method)(**lab.profile.defenses.get(method, {}))
    assert isinstance(purifier, Purifier)
    engine = lab.engine(lab.key(method, {"subject": suspect.key, "settings": purifier.model_dump()}))
    return purifier.purify(suspect.network, lab.defender_images(0.05), engine).network


def _retrained(lab: Lab, attack: str, suffix: str, column: str, poisoned: Poisoned) -> dict[str, float | None]:
    architecture = _architecture(lab.profile, column)
    features = SimCLR(**SETTINGS[lab.profile.name]["features"])
    told = {"features": features.model_dump(), "data": poisoned.data.sha256}
    unlabelled = poisoned.data.without_labels()
    encoder = lab.keep(
        f"features-{attack}",
        told,
        lambda engine: (features.train(lab.untrained(architecture), unlabelled, engine).network, ()),
        architecture=architecture,
    )
    trainer = Decoupled(ssl="given", **(SETTINGS[lab.profile.name]["training"] | ABLATIONS[column]))
    network = lab.untrained(architecture, kind="classifier")
    network.backbone.load_state_dict(encoder.network.backbone.state_dict(), strict=False)  # it has no head
    engine = lab.engine(lab.key("decoupled", {"encoder": encoder.key, "trainer": trainer.model_dump()}))
    trained = trainer.train(network, poisoned.data, engine)
    first = trained.filterings["classifier"]
    _keep_losses(lab, f"{attack}{suffix}--{column}", first, poisoned)
    filtered = measure_filtering(Scores(first.losses), ~first.trusted, poisoned.truth.poisoned).metrics
    return _evaluated(lab, network, poisoned) | {name: filtered[name] for name in ("remaining_poison_share", "auroc")}


def _architecture(profile: Profile, column: str) -> str:
    if column == "no attention":
        return profile.architecture
    if column == "no attention, equal size":
        return f"{Path(__file__).with_name('equal_size.py')}:{profile.architecture.replace('-', '_')}"
    return f"{profile.architecture}-attention"


def _evaluated(lab: Lab, network: Network, poisoned: Poisoned) -> dict[str, float | None]:
    evaluator = ClassifierEvaluator(test_data=lab.test, triggers=poisoned.triggers)
    metrics = evaluator.measure(network, lab.engine("evaluation")).metrics
    return {name: metrics[name] for name in ("clean_accuracy", "attack_success_rate")}


def _keep_losses(lab: Lab, name: str, filtering: Filtering, poisoned: Poisoned) -> None:
    folder = lab.work / "losses" / lab.profile.name
    folder.mkdir(parents=True, exist_ok=True)
    losses, truth = filtering.losses.numpy(), poisoned.truth.poisoned.numpy()
    np.savez(folder / f"{name}--seed{lab.seed}.npz", losses=losses, poisoned=truth)


def plot_losses(folder: Path, picture: Path) -> None:
    """Losses of clean and poisoned images on the frozen features, trained with CE and with SCE (first seed)."""
    columns = ("CE, frozen features", "SCE, frozen features")
    files = {(a, c): min(folder.glob(f"{a}--{c}--seed*.npz"), default=None) for a in ATTACKS for c in columns}
    if not any(files.values()):
        return
    canvas = Figure(figsize=(9, 3 * len(ATTACKS)), layout="constrained")
    for axes, ((attack, column), file) in zip(
        canvas.subplots(len(ATTACKS), len(columns)).ravel(), files.items(), strict=True
    ):
        label_axes(axes, f"{attack}, {column}", "loss (log10)", "share of the images")
        if file is None:
            continue
        with np.load(file) as arrays:
            losses, poisoned = np.log10(np.maximum(arrays["losses"], 1e-8)), arrays["poisoned"]
        edges = np.linspace(losses.min(), losses.max(), 60)
        for name, rows, color in (("clean", ~poisoned, COLORS[5]), ("poisoned", poisoned, COLORS[1])):
            shares = np.full(int(rows.sum()), 1 / max(1, int(rows.sum())))
            axes.hist(losses[rows], bins=edges, weights=shares, alpha=0.6, color=color, label=name)
        axes.axvline(float(np.median(losses)), color="black", linestyle="--", linewidth=1.2, label="cut")
        axes.legend(fontsize=8, frameon=False)
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(to_png(canvas))
