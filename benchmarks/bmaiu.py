"""The tables of the BMAIU paper (Electronics 14(8):1587, 2025): Tables 3 to 8 and the study of u1, u2, u3."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.cells import Cell, Measure
from benchmarks.lab import Lab
from benchmarks.motivation import MOTIVATION
from benchmarks.profiles import PROFILES, Profile
from benchmarks.study import Study
from benchmarks.subjects import compared, suspect

# BA / ASR / PA in %, as printed; columns none, CLP, I-BAU, SSL-Cleanse, BMAIU.
COLUMNS = ("none", "clp", "i-bau", "ssl-cleanse", "bmaiu")
TABLE_3 = {
    (
        "simclr",
        "badencoder",
    ): "77.67/59.98/32.66 63.48/27.98/36.56 69.37/1.17/62.84 70.54/21.69/54.77 76.26/13.68/66.47",
    ("simclr", "estas"): "79.66/97.46/1.66 65.73/12.56/55.3 73.15/2.01/68.15 74.6/33.17/24.8 77.1/8.4/67.37",
    ("simclr", "ctrl"): "74.94/89.40/9.31 65.05/15.94/52.08 65.94/0.33/58.03 66.92/44.6/35.31 72.15/11.63/60.76",
    ("simclr", "ssl-backdoor"): "77.19/16.00/66.56 66.22/9.13/52.77 72.83/2.16/67.47 71.62/2.58/68.63 78.05/1.17/75.44",
    ("byol", "badencoder"): "72.95/87.83/9.92 61.87/68.42/18.42 52.29/0.47/47.11 54.33/62.94/16.51 66.85/10.24/56.89",
    ("byol", "estas"): "71.70/92.49/5.76 67.29/6.39/56.72 54.34/1.07/52.53 54.8/29.68/35.33 69.08/11.52/60.16",
    ("byol", "ctrl"): "73.12/89.79/3.48 66.26/1.33/63.32 51.30/0.44/48.36 54.387/43.5/33.12 71.21/14.3/59.59",
    ("byol", "ssl-backdoor"): "72.42/18.03/61.59 58.11/8.23/44.4 45.90/1.01/44.81 59.41/11.92/54.27 70.26/1.42/68.19",
}
TABLE_4 = {
    "badencoder": "60.03/61.11/17.73 48.99/35.19/18.98 51.06/1.55/47.30 51.16/14.02/38.24 58.24/1.23/52.65",
    "ctrl": "58.22/38.98/36.80 53.23/19.46/42.41 51.98/0.72/45.99 50.83/17.93/45.82 57.32/3.33/53.89",
    "ssl-backdoor": "59.39/38.22/35.18 54.82/32.83/33.88 52.45/2.42/45.11 51.00/26.66/34.94 58.16/0.19/51.86",
}
AT_96_PX: dict[str, dict[str, Any]] = {"ctrl": {"window": 32}}
"""CTRL's own windows: one as large as the image would make the change three times fainter than at 32 px."""

IMAGENETTE = {
    "paper": Profile(
        name="paper",
        train="imagenette96-train.parquet",
        test="imagenette96-test.parquet",
        normalization="imagenet",
        image_size=96,
        architecture="efficientnet_v2_s",
        pretraining={"epochs": 200, "batch_size": 256, "learning_rate": 0.12},
        attack={"epochs": 20, "batch_size": 64, "learning_rate": 0.01},
    ),
    "small": Profile(
        name="small",
        train="imagenette96-train.parquet#0:640",
        test="imagenette96-test.parquet#0:300",
        normalization="imagenet",
        image_size=96,
        architecture="efficientnet_v2_s",
        pretraining={"epochs": 3, "batch_size": 64, "learning_rate": 0.1},
        attack={"epochs": 3, "batch_size": 64, "learning_rate": 0.02},
        defenses={
            "bmaiu": {"max_steps": 20},
            "uau": {
                "rounds": 3,
                "starts": 2,
                "search_steps": 1,
                "evidence_steps": 1,
                "batch_size": 16,
                "squares": False,
            },
            "i-bau": {"rounds": 1, "inner_steps": 4, "batch_size": 16},
            "ssl-cleanse": {"steps": 10, "batch_size": 8, "unlearn_epochs": 1},
        },
    ),
}
"""Table 4's scales: Imagenette at 96 px stands in for ImageNet-100. `small` shows that the code runs, and no more."""
BACKBONES = {
    "paper": PROFILES["paper"],
    "small": replace(
        PROFILES["small"],
        train="cifar10-train.parquet#0:320",
        test="cifar10-test.parquet#0:200",
        pretraining={"epochs": 2, "batch_size": 64, "learning_rate": 0.1},
        attack={"epochs": 2, "batch_size": 64, "learning_rate": 0.02},
        share=0.2,
        defenses=IMAGENETTE["small"].defenses,
    ),
    "digits": PROFILES["digits"],
}
"""Table 7's scales: its networks are too large for two cores. `small` shows that the code runs, and no more."""
# ASR / PA per target; the last line is BA.
TABLE_5 = {
    0: "76.65/26.87 62.61/37.10 2.81/61.37 18.29/55.84 14.71/77.48",
    1: "98.73/10.73 93.06/15.01 11.34/60.26 14.91/53.72 12.21/75.27",
    2: "96.95/11.92 92.08/14.24 17.96/61.11 19.91/55.12 13.16/75.21",
    3: "89.83/14.20 34.01/23.97 0.42/60.85 10.79/57.27 7.24/77.85",
    4: "75.97/23.35 74.95/28.33 14.23/60.48 7.92/55.38 9.33/77.71",
    5: "98.29/11.15 93.01/15.17 18.94/61.41 7.26/57.00 13.05/78.62",
    6: "87.88/19.5 73.82/28.97 3.82/61.23 17.49/55.79 12.76/77.90",
    7: "91.22/14.24 79.14/20.23 9.92/61.99 9.55/56.93 10.29/78.13",
    8: "84.35/21.18 70.59/32.18 14.87/61.50 11.45/57.34 9.67/78.77",
    9: "96.49/12.39 93.86/14.09 9.68/61.64 16.51/56.03 11.76/77.52",
}
TABLE_5_ACCURACY = (82.71, 79.09, 64.97, 59.86, 82.27)
TABLE_6 = {0.01: "74.51/12.52/63.55", 0.05: "74.93/12.20/64.90", 0.10: "76.26/13.68/66.47"}
TABLE_7 = {
    "resnet18-cifar": "79.66/97.46/1.66 77.1/8.4/67.37",
    "vgg11-cifar": "70.77/51.22/36.02 69.11/9.49/60.51",
    "senet18-cifar": "79.82/73.73/23.4 75.73/4.88/72.69",
    "vgg16-cifar": "67.99/77.17/18.29 67.55/11.39/60.23",
    "resnet34-cifar": "77.79/84.74/11.15 74.44/6.38/70.14",
    "senet34-cifar": "80.17/74.84/22.02 77.40/5.19/73.72",
}
TABLE_8 = {
    "none": "77.1/8.4/67.37",
    "L0": "72.22/10.52/52.76",
    "L1": "74.26/19.57/44.77",
    "L2": "76.99/22.94/43.71",
}
REMOVED = {
    "none": {},
    "L0": {"consistency_weight": 0.0},
    "L1": {"unlearn_weight": 0.0},
    "L2": {"separation_weight": 0.0},
}
WEIGHTS = {
    "u1": ("effectiveness_weight", (0.5, 1.0, 2.0, 5.0, 10.0)),
    "u2": ("unlearn_weight", (0.0, 1.0, 5.0, 10.0, 20.0)),
    "u3": ("separation_weight", (0.0, 0.5, 1.0, 2.0, 5.0)),
}
METRICS = {"clean_accuracy": "BA", "attack_success_rate": "ASR", "poison_accuracy": "PA"}


def table_3() -> list[Cell]:
    """SSL method x attack x defence; our own UAU beside the paper's columns."""
    return [
        Cell(f"{method} {attack}", column, _against(method, attack, column), published)
        for (method, attack), line in TABLE_3.items()
        for column, published in [*zip(COLUMNS, _published(line), strict=True), ("uau", {})]
    ]


def table_4() -> list[Cell]:
    """Attack x defence with a larger network and larger images."""
    return [
        Cell(attack, column, _at_96_px(attack, column), published)
        for attack, line in TABLE_4.items()
        for column, published in [*zip(COLUMNS, _published(line), strict=True), ("uau", {})]
    ]


def table_5() -> list[Cell]:
    """Ten triggers, one a target. ASR over all images, as the paper's values of this table are."""
    parts = tuple(f"target {target}" for target in TABLE_5)
    cells = []
    for number, column in enumerate((*COLUMNS, "uau")):
        paper: dict[str, float] = {}
        if column in COLUMNS:
            for target, line in TABLE_5.items():
                rate, kept = line.split()[number].split("/")
                paper |= {
                    f"target {target}/clean_accuracy": TABLE_5_ACCURACY[number] / 100,
                    f"target {target}/attack_success_rate_all": float(rate) / 100,
                    f"target {target}/poison_accuracy": float(kept) / 100,
                }
        cells.append(Cell("ten targets", column, _ten_targets(column), paper, parts))
    return cells


def table_6() -> list[Cell]:
    """Share of the training images that the defender has."""
    return [
        Cell(f"{share:.0%} of the images", column, _with_share(share, column), paper)
        for share, line in TABLE_6.items()
        for column, paper in (("bmaiu", _published(line)[0]), ("uau", {}))
    ]


def table_7() -> list[Cell]:
    """Six backbones, ESTAS, SimCLR."""
    return [
        Cell(architecture, column, _on_backbone(architecture, column), paper)
        for architecture, line in TABLE_7.items()
        for column, paper in [*zip(("none", "bmaiu"), _published(line), strict=True), ("uau", {})]
    ]


def table_8() -> list[Cell]:
    """Stage 2 without one of its losses, ESTAS, SimCLR."""
    return [
        Cell(f"without {name}" if name != "none" else "all losses", "bmaiu", _ablated(name), _published(line)[0])
        for name, line in TABLE_8.items()
    ]


def weights() -> list[Cell]:
    """The study of u1, u2, u3 (BadEncoder, SimCLR); the paper shows curves without numbers."""
    return [
        Cell(f"{symbol} = {value:g}", "bmaiu", _weighted(parameter, value))
        for symbol, (parameter, values) in WEIGHTS.items()
        for value in values
    ]


def plot_weights(results: Path, picture: Path) -> None:
    """Curves over each weight: what the paper shows as figures."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = [json.loads(file.read_text()) for file in sorted(results.glob("*.json"))]
    figure, axes = pyplot.subplots(1, len(WEIGHTS), figsize=(4 * len(WEIGHTS), 3), sharey=True)
    for axis, symbol in zip(axes, WEIGHTS, strict=True):
        points = sorted(
            (float(record["row"].split(" = ")[1]), record["ours"])
            for record in records
            if record["row"].startswith(f"{symbol} =")
        )
        for metric, heading in METRICS.items():
            axis.plot([x for x, _ in points], [values[metric] for _, values in points], marker="o", label=heading)
        axis.set_xlabel(symbol)
        axis.set_ylim(0, 1)
    axes[0].legend()
    figure.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)


def _study(
    table: str,
    title: str,
    cells: Callable[[], list[Cell]],
    metrics: dict[str, str] = METRICS,
    profiles: Mapping[str, Profile] = PROFILES,
) -> Study:
    return Study(f"bmaiu-table-{table}", f"BMAIU, table {table}: {title}", cells, metrics, profiles=profiles)


TABLES = {
    "3": _study("3", "attacks and defences", table_3),
    "4": _study("4", "Imagenette at 96 px in place of ImageNet-100", table_4, profiles=IMAGENETTE),
    "5": _study(
        "5",
        "ten targets at once",
        table_5,
        {"clean_accuracy": "BA", "attack_success_rate_all": "ASR over all images", "poison_accuracy": "PA"},
    ),
    "6": _study("6", "images that the defender has", table_6),
    "7": _study("7", "backbones", table_7, profiles=BACKBONES),
    "8": _study("8", "losses of stage 2", table_8),
    "motivation": MOTIVATION,
    "u": Study("bmaiu-weights", "BMAIU: the loss weights u1, u2, u3", weights, METRICS, plot=plot_weights),
}


def _published(line: str) -> list[dict[str, float]]:
    return [dict(zip(METRICS, (float(value) / 100 for value in cell.split("/")), strict=True)) for cell in line.split()]


def _against(method: str, attack: str, column: str) -> Measure:
    def measure(lab: Lab) -> dict[str, float | None]:
        return compared(lab, suspect(lab, method, attack), None if column == "none" else column)

    return measure


def _at_96_px(attack: str, column: str) -> Measure:
    def measure(lab: Lab) -> dict[str, float | None]:
        architecture = lab.profile.architecture  # named, since CIFAR-10's profiles of the same names share the folder
        subject = suspect(lab, "simclr", attack, architecture=architecture, settings=AT_96_PX.get(attack))
        return compared(lab, subject, None if column == "none" else column, architecture=architecture)

    return measure


def _ten_targets(column: str) -> Measure:
    def measure(lab: Lab) -> dict[str, float | None]:
        subject = suspect(lab, "simclr", "multi-target-badencoder")
        found = compared(lab, subject, None if column == "none" else column)
        named = {f"target {trigger.target}": trigger.name for trigger in subject.triggers}
        parts = {
            f"{part}/{metric}": found.get(f"{metric}/{name}")
            for part, name in named.items()
            for metric in ("attack_success_rate", "attack_success_rate_all", "base_rate", "poison_accuracy")
        }
        accuracies = {f"{part}/clean_accuracy": found["clean_accuracy"] for part in named}
        return parts | accuracies | {"suspect_attack_success_rate": found["suspect_attack_success_rate"]}

    return measure


def _with_share(share: float, column: str) -> Measure:
    return lambda lab: compared(lab, suspect(lab, "simclr", "badencoder"), column, share=share)


def _on_backbone(architecture: str, column: str) -> Measure:
    def measure(lab: Lab) -> dict[str, float | None]:
        subject = suspect(lab, "simclr", "estas", architecture=architecture)
        return compared(lab, subject, None if column == "none" else column, architecture=architecture)

    return measure


def _ablated(removed: str) -> Measure:
    return lambda lab: compared(lab, suspect(lab, "simclr", "estas"), "bmaiu", settings=dict(REMOVED[removed]))


def _weighted(parameter: str, value: float) -> Measure:
    return lambda lab: compared(lab, suspect(lab, "simclr", "badencoder"), "bmaiu", settings={parameter: value})
