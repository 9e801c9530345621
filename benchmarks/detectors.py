"""Which number tells backdoored encoders from clean ones, without the trigger: ROC over both kinds."""

from __future__ import annotations

from pathlib import Path

from benchmarks.cells import Cell, Measure
from benchmarks.lab import Lab, Subject
from benchmarks.roc import established, examined, of_seed, write_roc
from benchmarks.study import Study
from benchmarks.subjects import cleaned, measured, pretrained, suspect
from benchmarks.uau import kinds_of_trigger
from benchmarks.verdicts import write_verdicts
from sanitize.data import DeviceImages
from sanitize.defenses import SSLCleanse
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
    "ssl_cleanse_index": True,
}


def encoders() -> list[Cell]:
    """A clean and a backdoored encoder of each architecture, a seed.

    Columns of their own hold what costs more: an inversion for SSL-Cleanse's index, a purification for "after uau".
    """
    rows = [(truth, architecture) for architecture in ARCHITECTURES for truth in ("clean", "backdoored")]
    return [
        Cell(f"{truth}, {architecture}", column, measure(truth, architecture))
        for column, measure in (("scores", _scored), ("ssl-cleanse", _inverted), ("after uau", _cleaned))
        for truth, architecture in rows
    ]


def _examined(lab: Lab, truth: str, architecture: str) -> Subject:
    if truth == "clean":
        return pretrained(lab, "simclr", architecture=architecture)
    trigger = kinds_of_trigger(lab.profile.image_size)[of_seed(TRIGGERS, lab.seed)]
    return suspect(lab, "simclr", "badencoder", architecture=architecture, triggers=[trigger])


def _scored(truth: str, architecture: str) -> Measure:
    def measure(lab: Lab) -> dict[str, float | None]:
        subject = _examined(lab, truth, architecture)
        return {
            **searched(lab, subject.network),
            **_decree(lab, subject),
            **_success(lab, subject),
        }

    return measure


def _inverted(truth: str, architecture: str) -> Measure:
    """SSL-Cleanse's anomaly index; 0, that of the median, where too few triggers were found for one."""

    def measure(lab: Lab) -> dict[str, float | None]:
        subject = _examined(lab, truth, architecture)
        detector = SSLCleanse(**lab.profile.defenses.get(SSLCleanse.name, {}))
        engine = lab.engine(lab.key("ssl-cleanse-index", subject.key, detector.model_dump()))
        found = detector.examine(subject.network, lab.defender_images().without_labels(), engine)
        index = found.metrics["anomaly_index"]
        return {"ssl_cleanse_index": 0.0 if index is None else index, **_success(lab, subject)}

    return measure


def _cleaned(truth: str, architecture: str) -> Measure:
    def measure(lab: Lab) -> dict[str, float | None]:
        subject = _examined(lab, truth, architecture)
        copy = cleaned(lab, subject, "uau", architecture=architecture)
        before, after = (searched(lab, one.network)["collapse"] for one in (subject, copy))
        searches = {"collapse": before, "collapse_cleaned": after, "collapse_minus_cleaned": before - after}
        return {**searches, **_success(lab, subject)}

    return measure


def _success(lab: Lab, subject: Subject) -> dict[str, float | None]:
    """Whether the attack took, without which an encoder does not count as backdoored."""
    return {"attack_success_rate": measured(lab, subject).metrics.get("attack_success_rate")}


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


def write_evidence(results: Path, picture: Path) -> None:
    """The curves, a page with the areas below them, and a page with what a scan would have said."""
    records = established(examined(results, TRIGGERS))
    write_roc(records, SCORES, picture)
    write_verdicts(records, picture.with_name(f"{picture.stem}-verdicts.md"))


STUDY = Study(
    "detectors",
    "Trigger-free scores of clean and backdoored encoders",
    encoders,
    {name: name for name in (*SCORES, "attack_success_rate")},
    plot=write_evidence,
    percent=False,
)
