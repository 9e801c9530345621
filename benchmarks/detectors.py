"""Which number tells backdoored encoders from clean ones, without the trigger: ROC over both kinds."""

from __future__ import annotations

import json
from pathlib import Path

from sklearn.metrics import roc_auc_score, roc_curve

from benchmarks.cells import Cell, Measure
from benchmarks.lab import Lab, Subject
from benchmarks.study import Study
from benchmarks.subjects import cleaned, measured, pretrained, suspect
from benchmarks.uau import kinds_of_trigger
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
    """A clean and a backdoored encoder of each architecture, a seed."""
    return [
        Cell(f"{truth}, {architecture}", "scores", _scored(truth, architecture))
        for architecture in ARCHITECTURES
        for truth in ("clean", "backdoored")
    ]


def _scored(truth: str, architecture: str) -> Measure:
    def measure(lab: Lab) -> dict[str, float | None]:
        if truth == "clean":
            subject = pretrained(lab, "simclr", architecture=architecture)
        else:
            trigger = kinds_of_trigger(lab.profile.image_size)[TRIGGERS[lab.seed % len(TRIGGERS)]]
            subject = suspect(lab, "simclr", "badencoder", architecture=architecture, triggers=[trigger])
        found = searched(lab, subject.network)
        copy = searched(lab, cleaned(lab, subject, "uau", architecture=architecture).network)
        found["collapse_minus_cleaned"] = found["collapse"] - copy["collapse"]
        return found | _decree(lab, subject) | {"attack_success_rate": _established(lab, subject)}

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


def _established(lab: Lab, subject: Subject) -> float | None:
    return measured(lab, subject).metrics.get("attack_success_rate")


def write_roc(results: Path, picture: Path) -> None:
    """The curves, and a page beside them with the areas below them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = [json.loads(file.read_text()) for file in sorted(results.glob("*.json"))]
    truth = [record["row"].startswith("backdoored") for record in records]
    if len(set(truth)) < 2:
        return
    lines = [
        "# Detectors: area below the ROC curve",
        "",
        f"{truth.count(False)} clean and {truth.count(True)} backdoored encoders "
        f"({', '.join(sorted({record['row'].split(', ')[1] for record in records}))}); all scores of this page were "
        "measured on the same encoders with the same images. Detection is the share of backdoored encoders beyond "
        "every clean one.",
        "",
        "| score | backdoored when | area | detection without false alarm |",
        "|---|---|---|---|",
    ]
    figure, axis = pyplot.subplots(figsize=(5, 5))
    for name, larger in SCORES.items():
        values = [(1 if larger else -1) * record["ours"][name] for record in records]
        area = roc_auc_score(truth, values)
        worst_clean = max(value for value, backdoored in zip(values, truth, strict=True) if not backdoored)
        beyond = [value > worst_clean for value, backdoored in zip(values, truth, strict=True) if backdoored]
        direction = "larger" if larger else "smaller"
        lines.append(f"| `{name}` | {direction} | {area:.3f} | {sum(beyond)} of {len(beyond)} |")
        axis.plot(*roc_curve(truth, values)[:2], label=f"{name} ({area:.2f})")
    axis.set_xlabel("false alarms")
    axis.set_ylabel("detected")
    axis.legend(fontsize=7)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)
    page = picture.with_name(picture.stem + "-roc.md")
    page.write_text("\n".join([*lines, "", f"![ROC curves]({picture.name})", ""]))


STUDY = Study(
    "detectors",
    "Trigger-free scores of clean and backdoored encoders",
    encoders,
    {name: name for name in (*SCORES, "attack_success_rate")},
    plot=write_roc,
    percent=False,
)
