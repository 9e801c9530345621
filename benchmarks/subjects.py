"""Suspects and what defences make of them, each made once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.lab import Lab, Subject
from sanitize.attacks import EncoderAttack, PoisoningAttack, attack_named
from sanitize.data import ImageSet
from sanitize.data.triggers import Trigger
from sanitize.defenses import Need, Purifier, defense_named
from sanitize.errors import ConfigError
from sanitize.evaluation import Measurement
from sanitize.suspects import Network
from sanitize.trainers import trainer_named
from sanitize.training import Engine

SHOWN = ("clean_accuracy", "attack_success_rate", "poison_accuracy")


def pretrained(
    lab: Lab, method: str, *, architecture: str | None = None, settings: dict[str, Any] | None = None
) -> Subject:
    """A clean encoder."""
    values = lab.profile.pretraining | (settings or {})
    return lab.keep(
        method,
        {"pretraining": values},
        lambda engine: (_trained(lab, method, lab.train, values, architecture, engine), ()),
        architecture=architecture,
    )


def suspect(
    lab: Lab,
    method: str,
    attack: str,
    *,
    architecture: str | None = None,
    settings: dict[str, Any] | None = None,
    triggers: Sequence[Trigger] = (),
) -> Subject:
    """A backdoored encoder: one that was fine-tuned, or one that was pre-trained on poisoned images.

    Args:
        lab: Profile, folder, seed.
        method: Self-supervised training.
        attack: Name of the attack.
        architecture: The profile's when left out.
        settings: Of the attack, over the profile's.
        triggers: Instead of the attack's own.
    """
    made = attack_named(attack)
    told = {"pretraining": lab.profile.pretraining, "triggers": [trigger.sha256 for trigger in triggers]}
    if issubclass(made, EncoderAttack):
        implanting = made(
            **({k: v for k, v in lab.profile.attack.items() if k in made.model_fields} | (settings or {}))
        )
        clean = pretrained(lab, method, architecture=architecture)

        def implant(engine: Engine) -> tuple[Network, Sequence[Trigger]]:
            planted = implanting.implant(clean.network, lab.train, engine, triggers=triggers)
            return planted.network, planted.triggers

        return lab.keep(
            f"{method}-{attack}", told | {"attack": implanting.model_dump()}, implant, architecture=architecture
        )
    if issubclass(made, PoisoningAttack):
        poisoning = made(**(settings or {}))

        def poison_and_train(engine: Engine) -> tuple[Network, Sequence[Trigger]]:
            poisoned = poisoning.poison(lab.train, engine, triggers=triggers)
            network = _trained(lab, method, poisoned.data, lab.profile.pretraining, architecture, engine)
            return network, poisoned.triggers

        return lab.keep(
            f"{method}-{attack}", told | {"attack": poisoning.model_dump()}, poison_and_train, architecture=architecture
        )
    raise ConfigError(f"{attack} attacks neither an encoder nor a data set.")


def cleaned(
    lab: Lab,
    subject: Subject,
    defense: str,
    *,
    share: float | None = None,
    settings: dict[str, Any] | None = None,
    architecture: str | None = None,
) -> Subject:
    """What a defence makes of a suspect with the defender's share of clean images; labels only where it needs them."""
    purifier = defense_named(defense)(**(lab.profile.defenses.get(defense, {}) | (settings or {})))
    if not isinstance(purifier, Purifier):
        raise ConfigError(f"{defense} does not purify.")
    data = lab.defender_images(share)
    if Need.LABELS not in purifier.needs:
        data = data.without_labels()

    def purify(engine: Engine) -> tuple[Network, Sequence[Trigger]]:
        return purifier.purify(subject.network, data, engine).network, ()

    told = {"subject": subject.key, "share": share, "defense": purifier.model_dump()}
    kept = lab.keep(f"{defense}", told, purify, architecture=architecture)
    return replace(kept, triggers=subject.triggers)


def measured(lab: Lab, subject: Subject) -> Measurement:
    """Clean accuracy, success rates, poison accuracy, by a probe of its own."""
    return lab.evaluator(subject.triggers).measure(subject.network, lab.engine("evaluation"))


def compared(
    lab: Lab,
    subject: Subject,
    defense: str | None,
    *,
    share: float | None = None,
    settings: dict[str, Any] | None = None,
    architecture: str | None = None,
) -> dict[str, float | None]:
    """The metrics of a cell: of the suspect itself (defense None), or of what a defence makes of it."""
    before = measured(lab, subject).metrics
    result = before
    if defense is not None:
        made = cleaned(lab, subject, defense, share=share, settings=settings, architecture=architecture)
        result = measured(lab, made).metrics
    return result | {"suspect_attack_success_rate": before.get("attack_success_rate")}


def _trained(
    lab: Lab, method: str, data: ImageSet, settings: dict[str, Any], architecture: str | None, engine: Engine
) -> Network:
    trainer = trainer_named(method)
    values = {name: value for name, value in settings.items() if name in trainer.model_fields}
    return trainer(**values).train(lab.untrained(architecture), data.without_labels(), engine).network
