"""What D-BR and D-ST owe to their parts: one loss of two, kinds of positives, the poisoned part in the classifier."""

from __future__ import annotations

from typing import Any

from benchmarks.cells import Cell, Measure
from benchmarks.classifiers import D_ST, METRICS, SUPERVISED, settings, suspect
from benchmarks.lab import Lab
from benchmarks.study import Study
from sanitize.defenses import DBR
from sanitize.evaluation import ClassifierEvaluator
from sanitize.trainers import DST

ATTACKS = ("badnets", "blend-strip", "trojan", "blend-kitty")
# The papers show both as figures without numbers.
UNLEARNING: dict[str, dict[str, Any]] = {
    "d-br": {},
    "d-br, only unlearning": {"relearn_weight": 0.0},
    "d-br, only relearning": {"unlearn_weight": 0.0},
    "d-br published": {"form": "published"},
    "d-br published, only unlearning": {"form": "published", "relearn_weight": 0.0},
    "d-br published, only relearning": {"form": "published", "unlearn_weight": 0.0},
}
TRAINING: dict[str, dict[str, Any]] = {
    "d-st": {},
    "d-st, positives published": {"positives": "published"},
    "d-st, positives labels": {"positives": "labels"},
    "d-st, positives own": {"positives": "own"},
    "d-st, cross-entropy of D_c alone": {"poison_weight": 0.0},
}


def cells() -> list[Cell]:
    """Attack x variant."""
    listed = []
    for row in ATTACKS:
        listed.append(Cell(row, "none", _measured(row, None, {})))
        listed += [Cell(row, column, _measured(row, DBR, values)) for column, values in UNLEARNING.items()]
        listed += [Cell(row, column, _measured(row, DST, values)) for column, values in TRAINING.items()]
    return listed


def _measured(row: str, method: type[DBR | DST] | None, varied: dict[str, Any]) -> Measure:
    def measure(lab: Lab) -> dict[str, float | None]:
        network, data, triggers, _ = suspect(lab, row)
        evaluator = ClassifierEvaluator(test_data=lab.test, triggers=triggers)
        before = evaluator.measure(network, lab.engine("evaluation")).metrics
        if method is DBR:
            purifier = DBR(**lab.profile.defenses.get("d-br", {}) | varied)
            engine = lab.engine(lab.key(f"{row}-d-br", SUPERVISED[lab.profile.name], purifier.model_dump()))
            network = purifier.purify(network, data, engine).network
        elif method is DST:
            trainer = DST(**D_ST[lab.profile.name] | varied)
            engine = lab.engine(lab.key(f"{row}-d-st", SUPERVISED[lab.profile.name], trainer.model_dump()))
            network = trainer.train(lab.untrained(kind="classifier"), data, engine).network
        found = evaluator.measure(network, lab.engine("evaluation")).metrics
        return found | {"suspect_attack_success_rate": before.get("attack_success_rate")}

    return measure


STUDY = Study("classifiers-ablation", "D-BR and D-ST without one of their parts", cells, METRICS, preface=settings)
