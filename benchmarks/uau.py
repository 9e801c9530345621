"""UAU against other purifications: kinds of triggers, all attacks, ablations, an attacker who knows it."""

from __future__ import annotations

import torch

from benchmarks.cells import Cell, Measure
from benchmarks.lab import Lab, Subject
from benchmarks.profiles import Profile
from benchmarks.study import Study, of_encoders
from benchmarks.subjects import cleaned, compared, measured, pretrained, suspect
from sanitize.data import PatchTrigger
from sanitize.data.triggers import FrequencyTrigger, Trigger, WarpTrigger
from sanitize.data.triggers.patterns import htba_patch, sinusoid

TARGET = 3
PLANTING: dict[str, dict[str, object]] = {"small": {"reference": "first"}}
"""Settings of the attacker, by profile: with typical references one trigger of four takes on so few images."""
METRICS = {
    "clean_accuracy": "BA",
    "attack_success_rate": "ASR",
    "poison_accuracy": "PA",
    "base_rate": "base rate",
}


def kinds_of_trigger(image_size: int) -> dict[str, Trigger]:
    """Triggers that a defender does not know, by name; the first four are those of the small-scale measurements."""
    generator = torch.Generator().manual_seed(2026)
    corner = max(4, image_size // 8)
    return {
        "patch": PatchTrigger(htba_patch(image_size // 4, generator), position="random", target=TARGET, name="patch"),
        "corner": PatchTrigger(torch.ones(3, corner, corner), position="bottom-right", target=TARGET, name="corner"),
        "blend": PatchTrigger(
            torch.rand(3, image_size, image_size, generator=generator),
            mode="blend",
            alpha=0.2,
            position=(0, 0),
            target=TARGET,
            name="blend",
        ),
        "sine": PatchTrigger(
            sinusoid(image_size, amplitude=0.08, frequency=6),
            mode="add",
            position=(0, 0),
            target=TARGET,
            name="sine",
        ),
        "frequency": FrequencyTrigger(magnitude=100.0, target=TARGET, name="frequency"),
        "warp": WarpTrigger(strength=0.5, seed=7, target=TARGET, name="warp"),
    }


def triggers() -> list[Cell]:
    """Four kinds of triggers x UAU, BMAIU, fine-tuning; and what each does to a clean encoder."""
    names = ("patch", "corner", "blend", "sine")
    cells = [
        Cell(name, column, _on_trigger(name, column))
        for name in names
        for column in ("none", "uau", "bmaiu", "fine-tune")
    ]
    cells += [Cell(f"clean encoder, {name}", "none", _clean(name)) for name in names]
    return cells + [Cell("clean encoder, patch", column, _harm(column)) for column in ("uau", "bmaiu", "fine-tune")]


def attacks() -> list[Cell]:
    """All attacks of the red team x all purifications x 1, 5, 10 % of the images x two backbones."""
    cells = []
    for architecture in ("resnet18-cifar", "vgg11-cifar"):
        for attack in ("patch", "corner", "blend", "frequency", "warp", "estas", "ctrl", "ssl-backdoor"):
            cells.append(Cell(f"{attack}, {architecture}", "none", _attacked(attack, architecture, None, 0.1)))
            cells += [
                Cell(
                    f"{attack}, {architecture}", f"{method} {share:.0%}", _attacked(attack, architecture, method, share)
                )
                for share in (0.1, 0.05, 0.01)
                for method in ("uau", "bmaiu", "ssl-cleanse", "clp", "i-bau")
            ]
    return cells


ABLATIONS: dict[str, dict[str, object]] = {
    "defaults": {},
    "bound 0.15": {"bound": 0.15},
    "perturbations only": {"families": "perturbation"},
    "pictures only": {"families": "blend"},
    "patches only": {"families": "patch"},
    "one start": {"starts": 1},
    "unlearn all that is found": {f"minimum_collapse{kind}": -1.0 for kind in ("", "_large", "_square")},
    "images as they are": {"crop_padding": 0, "mix": 0.0},
    "consistency 1": {"consistency_weight": 1.0},
    "cosines around the origin": {"centred": False},
    "no pool": {"pool_size": 1},
    "u 1": {"unlearn_weight": 1.0},
    "u 30": {"unlearn_weight": 30.0},
    "12 rounds": {"rounds": 12},
    "80 rounds": {"rounds": 80},
    "lr 0.01": {"learning_rate": 0.01},
    "no directions": {"minimum_alignment": 1.0},
    "6 steps a round": {"unlearn_steps": 6},
}


def ablation() -> list[Cell]:
    """One setting of UAU changed at a time, on the patch and the sine trigger; weights between suspect and result."""
    triggers = ("patch", "sine")
    cells = [
        Cell(f"{trigger}, {name}", "uau", _on_trigger(trigger, "uau", settings))
        for trigger in triggers
        for name, settings in ABLATIONS.items()
    ]
    return cells + [
        Cell(f"{trigger}, {share:.0%} of the suspect's weights", "uau", _between(trigger, share))
        for trigger in triggers
        for share in (0.25, 0.5)
    ]


def adaptive() -> list[Cell]:
    """Attacks built against UAU: triggers outside the searched families, and features that collapse only in part."""
    cells = [
        Cell(name, column, _on_trigger(name, column))
        for name in ("frequency", "warp")
        for column in ("none", "uau", "bmaiu")
    ]
    return cells + [
        Cell(f"partial collapse, {name}", column, _partial(name, column))
        for name in ("patch", "sine")
        for column in ("none", "uau", "bmaiu")
    ]


def settings(profile: Profile) -> str:
    """Settings of a profile in a paragraph, with the attacker's."""
    planting = ", ".join(f"{name} {value}" for name, value in PLANTING.get(profile.name, {}).items())
    return of_encoders(profile) + (f" Kinds of triggers are planted with {planting}." if planting else "")


PARTS = {
    "triggers": Study("uau-triggers", "UAU: kinds of triggers", triggers, METRICS, preface=settings),
    "attacks": Study("uau-attacks", "UAU: all attacks", attacks, METRICS, preface=settings),
    "ablation": Study("uau-ablation", "UAU: one setting changed at a time", ablation, METRICS, preface=settings),
    "adaptive": Study("uau-adaptive", "UAU: an attacker who knows it", adaptive, METRICS, preface=settings),
}


def _planted(lab: Lab, name: str, *, architecture: str | None = None, attack: str = "badencoder") -> Subject:
    trigger, settings = kinds_of_trigger(lab.profile.image_size)[name], PLANTING.get(lab.profile.name)
    return suspect(lab, "simclr", attack, architecture=architecture, settings=settings, triggers=[trigger])


def _on_trigger(name: str, column: str, settings: dict[str, object] | None = None) -> Measure:
    def measure(lab: Lab) -> dict[str, float | None]:
        return compared(lab, _planted(lab, name), None if column == "none" else column, settings=settings)

    return measure


def _between(name: str, share: float) -> Measure:
    """Weights averaged with the suspect's: whether clean accuracy comes back before the backdoor does."""

    def measure(lab: Lab) -> dict[str, float | None]:
        planted = _planted(lab, name)
        network, suspect_weights = cleaned(lab, planted, "uau").network, planted.network.state_dict()
        with torch.no_grad():
            for key, weights in network.state_dict().items():
                weights.copy_(torch.lerp(weights.double(), suspect_weights[key].double(), share))
        found = measured(lab, Subject(f"{planted.key}-between-{share}", network, planted.triggers)).metrics
        return found | {"suspect_attack_success_rate": measured(lab, planted).metrics["attack_success_rate"]}

    return measure


def _clean(name: str) -> Measure:
    """What a trigger does to an encoder that never learned it: the goal of poison accuracy."""

    def measure(lab: Lab) -> dict[str, float | None]:
        clean = pretrained(lab, "simclr")
        trigger = kinds_of_trigger(lab.profile.image_size)[name]
        return measured(lab, Subject(clean.key, clean.network, (trigger,))).metrics

    return measure


def _harm(column: str) -> Measure:
    def measure(lab: Lab) -> dict[str, float | None]:
        clean = pretrained(lab, "simclr")
        trigger = kinds_of_trigger(lab.profile.image_size)["patch"]
        found = compared(lab, Subject(clean.key, clean.network, (trigger,)), column)
        return found | {"suspect_attack_success_rate": None}

    return measure


def _attacked(attack: str, architecture: str, method: str | None, share: float) -> Measure:
    def measure(lab: Lab) -> dict[str, float | None]:
        if attack in kinds_of_trigger(lab.profile.image_size):
            subject = _planted(lab, attack, architecture=architecture)
        else:
            subject = suspect(lab, "simclr", attack, architecture=architecture)
        return compared(lab, subject, method, share=share, architecture=architecture)

    return measure


def _partial(name: str, column: str) -> Measure:
    def measure(lab: Lab) -> dict[str, float | None]:
        subject = _planted(lab, name, attack="partial-collapse")
        return compared(lab, subject, None if column == "none" else column)

    return measure
