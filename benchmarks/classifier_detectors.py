"""Whether Neural Cleanse's anomaly index tells backdoored classifiers from clean ones: ROC over both kinds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.cells import Cell, Measure
from benchmarks.classifiers import CLEAN, POISON_RATE, SUPERVISED, TARGET, suspect
from benchmarks.lab import Lab
from benchmarks.profiles import Profile
from benchmarks.roc import established, examined, of_seed, write_roc
from benchmarks.study import Study
from benchmarks.uau import kinds_of_trigger
from sanitize.data.triggers import Trigger
from sanitize.defenses import NeuralCleanse
from sanitize.evaluation import ClassifierEvaluator

ATTACKS = ("badnets", "trojan", "blend-kitty")
"""One a seed, so that three seeds see three attacks; BadNets with a white corner, the others with their own trigger."""
# Score -> whether a *larger* value speaks for a backdoor.
SCORES = {"anomaly_index": True, "smallest_trigger": False}


def classifiers() -> list[Cell]:
    """A clean and a backdoored classifier a seed."""
    return [Cell(truth, "neural-cleanse", _scored(truth)) for truth in ("clean", "backdoored")]


def _scored(truth: str) -> Measure:
    """Neural Cleanse's index, 0 where there is none, and its smallest mask, 1 where no trigger was found."""

    def measure(lab: Lab) -> dict[str, float | None]:
        attack = of_seed(ATTACKS, lab.seed) if truth == "backdoored" else CLEAN
        network, _, triggers, _ = suspect(lab, attack, _given(lab, attack))
        detector = NeuralCleanse(**lab.profile.defenses.get(NeuralCleanse.name, {}))
        told = {"supervised": SUPERVISED[lab.profile.name], "detector": detector.model_dump()}
        engine = lab.engine(lab.key(f"neural-cleanse-{attack}", told))
        found = detector.examine(network, lab.defender_images(), engine).metrics
        index, smallest = found["anomaly_index"], found["smallest_trigger"]
        evaluator = ClassifierEvaluator(test_data=lab.test, triggers=triggers)
        known = evaluator.measure(network, lab.engine("evaluation")).metrics
        return {
            "anomaly_index": 0.0 if index is None else index,
            "smallest_trigger": 1.0 if smallest is None else smallest,
            "clean_accuracy": known["clean_accuracy"],
            "attack_success_rate": known.get("attack_success_rate"),
        }

    return measure


def _given(lab: Lab, attack: str) -> tuple[Trigger, ...]:
    if attack != "badnets":
        return ()
    return (replace(kinds_of_trigger(lab.profile.image_size)["corner"], target=TARGET),)  # type: ignore[type-var]


def write_evidence(results: Path, picture: Path) -> None:
    """The curves, and a page with the areas below them."""
    write_roc(established(examined(results, ATTACKS)), SCORES, picture)


def settings(profile: Profile) -> str:
    """Settings of a profile in a paragraph."""
    return (
        f"Profile `{profile.name}`: {profile.architecture} trained on `{profile.train}`, with labels "
        f"({SUPERVISED[profile.name]}). In the backdoored ones {POISON_RATE:.0%} of the images of other classes than "
        f"{TARGET} are poisoned: {', '.join(ATTACKS)}, one a seed in turn; BadNets has a white corner as trigger. The "
        f"defender has {profile.share:.0%} of the training images, clean and with labels. Neural Cleanse with "
        f"{profile.defenses.get(NeuralCleanse.name) or 'its defaults'}. An index of 0 means that there is none, and a "
        "smallest trigger of 1 that none was found. Success rates, on "
        f"`{profile.test}`, are over images that are not of the target class."
    )


STUDY = Study(
    "detectors-classifiers",
    "Neural Cleanse's scores of clean and backdoored classifiers",
    classifiers,
    {name: name for name in (*SCORES, "clean_accuracy", "attack_success_rate")},
    plot=write_evidence,
    percent=False,
    preface=settings,
)
