"""Which number tells backdoored encoders from clean ones, without the trigger: ROC over both kinds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from sklearn.metrics import roc_auc_score, roc_curve

from benchmarks.cells import Cell, Measure
from benchmarks.lab import Lab, Subject
from benchmarks.study import Study
from benchmarks.subjects import cleaned, measured, pretrained, suspect
from benchmarks.tables import ESTABLISHED
from benchmarks.uau import kinds_of_trigger
from benchmarks.verdicts import write_verdicts
from sanitize.data import DeviceImages
from sanitize.detection.decree import DECREE
from sanitize.functional.changes import FAMILIES
from sanitize.functional.collapse import fresh_search
from sanitize.suspects import Network

ARCHITECTURES = ("small-cnn", "small-cnn-attention", "resnet18-narrow")
TRIGGERS = ("patch", "corner", "blend", "sine", "warp")
"""One a seed, so that five seeds see five attacks."""
# Score -> whether a *larger* value speaks for a backdoor.
SCORES = {
    "collapse_perturbation": True,
    "collapse_patch": True,
    "collapse": True,
    "collapse_minus_cleaned": True,
    "decree_pl1": False,
}


def encoders() -> list[Cell]:
    """A clean and a backdoored encoder of each architecture, a seed; column "after uau" costs a purification each."""
    rows = [(truth, architecture) for architecture in ARCHITECTURES for truth in ("clean", "backdoored")]
    return [
        Cell(f"{truth}, {architecture}", column, measure(truth, architecture))
        for column, measure in (("scores", _scored), ("after uau", _cleaned))
        for truth, architecture in rows
    ]


def _examined(lab: Lab, truth: str, architecture: str) -> Subject:
    if truth == "clean":
        return pretrained(lab, "simclr", architecture=architecture)
    trigger = kinds_of_trigger(lab.profile.image_size)[trigger_of(lab.seed)]
    return suspect(lab, "simclr", "badencoder", architecture=architecture, triggers=[trigger])


def trigger_of(seed: int) -> str:
    """Name of the trigger that the backdoored encoders of a seed have."""
    return TRIGGERS[seed % len(TRIGGERS)]


def _scored(truth: str, architecture: str) -> Measure:
    def measure(lab: Lab) -> dict[str, float | None]:
        subject = _examined(lab, truth, architecture)
        return {
            **searched(lab, subject.network),
            **_decree(lab, subject),
            "attack_success_rate": measured(lab, subject).metrics.get("attack_success_rate"),
        }

    return measure


def _cleaned(truth: str, architecture: str) -> Measure:
    def measure(lab: Lab) -> dict[str, float | None]:
        subject = _examined(lab, truth, architecture)
        copy = cleaned(lab, subject, "uau", architecture=architecture)
        before, after = (searched(lab, one.network)["collapse"] for one in (subject, copy))
        return {"collapse": before, "collapse_cleaned": after, "collapse_minus_cleaned": before - after}

    return measure


def searched(lab: Lab, network: Network) -> dict[str, float]:
    """What fresh searches reach on a network with the defender's images, and the larger of the two."""
    engine = lab.engine("evidence")
    data = lab.defender_images()
    images = DeviceImages(data.without_labels(), engine.device)
    centre = engine.forward(network, images.pixels, len(images)).mean(dim=0).to(engine.device)
    scores = {}
    for family in FAMILIES:
        generator = engine.generator(f"detectors/{family}")
        found = fresh_search(network, images.pixels, len(images), family, data.image_size, centre, generator)
        scores[f"collapse_{family}"] = found.collapse
    return scores | {"collapse": max(scores.values())}


def _decree(lab: Lab, subject: Subject) -> dict[str, float | None]:
    """PL1 norm; 1, the whole image, where no trigger was found."""
    engine = lab.engine(f"decree-{subject.key}")
    found = DECREE(**lab.profile.decree).examine(subject.network, lab.defender_images().without_labels(), engine)
    size = found.metrics["pl1_norm"]
    return {"decree_pl1": 1.0 if size is None else size}


def examined(results: Path) -> list[dict[str, Any]]:
    """One record an encoder: truth, architecture, seed, trigger (None where clean), and all that was measured on it."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for file in sorted(results.glob("*.json")):
        record = json.loads(file.read_text())
        truth, architecture = record["row"].split(", ")
        trigger = trigger_of(record["seed"]) if truth == "backdoored" else None
        key = record["row"], record["seed"]
        one = found.setdefault(
            key, {"truth": truth, "architecture": architecture, "seed": record["seed"], "trigger": trigger}
        )
        one |= record["ours"]
    return list(found.values())


def write_evidence(results: Path, picture: Path) -> None:
    """The curves, a page with the areas below them, and a page with what a scan would have said."""
    records = [one for one in examined(results) if one["truth"] == "clean" or one["attack_success_rate"] > ESTABLISHED]
    stem = picture.with_suffix("")
    write_roc(records, picture, stem.with_name(f"{stem.name}-roc.md"))
    write_verdicts(records, stem.with_name(f"{stem.name}-verdicts.md"))


def write_roc(records: Sequence[dict[str, Any]], picture: Path, page: Path) -> None:
    """Curves and areas of every score, each over the encoders that it was measured on."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = [
        "# Detectors: area below the ROC curve",
        "",
        f"Encoders whose attack took: success rate above {ESTABLISHED:.0%}. Detection is the number of backdoored "
        "encoders beyond every clean one of all architectures. The last column is the mean of the areas within each "
        "architecture.",
        "",
        "| score | backdoored when | clean | backdoored | area | detection without false alarm | area within |",
        "|---|---|---|---|---|---|---|",
    ]
    figure, axis = pyplot.subplots(figsize=(5, 5))
    for name, larger in SCORES.items():
        rows = [(record, (1 if larger else -1) * record[name]) for record in records if name in record]
        truth = [record["truth"] == "backdoored" for record, _ in rows]
        if len(set(truth)) < 2:
            continue
        values = [value for _, value in rows]
        worst = max(value for value, bad in zip(values, truth, strict=True) if not bad)
        beyond = sum(value > worst for value, bad in zip(values, truth, strict=True) if bad)
        within = [
            roc_auc_score(
                [record["truth"] == "backdoored" for record, _ in rows if record["architecture"] == architecture],
                [value for record, value in rows if record["architecture"] == architecture],
            )
            for architecture in sorted({record["architecture"] for record, _ in rows})
        ]
        area = roc_auc_score(truth, values)
        lines.append(
            f"| `{name}` | {'larger' if larger else 'smaller'} | {truth.count(False)} | {truth.count(True)} "
            f"| {area:.3f} | {beyond} of {truth.count(True)} | {mean(within):.3f} |"
        )
        axis.plot(*roc_curve(truth, values)[:2], label=f"{name} ({area:.2f})")
    axis.set_xlabel("false alarms")
    axis.set_ylabel("detected")
    axis.legend(fontsize=7)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)
    page.write_text("\n".join([*lines, "", f"![ROC curves]({picture.name})", ""]))


STUDY = Study(
    "detectors",
    "Trigger-free scores of clean and backdoored encoders",
    encoders,
    {name: name for name in (*SCORES, "attack_success_rate")},
    plot=write_evidence,
    percent=False,
)
