"""What the user asks an attack for, and whether the options go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sanitize.attacks import Attack, PoisoningAttack
from sanitize.errors import ConfigError
from sanitize.tracking.intake import check_name
from sanitize.trainers import Trainer


@dataclass(frozen=True, kw_only=True)
class AttackRequest:
    """What is attacked, and where the suspect goes.

    Args:
        data: Clean labelled images: the shadow images of an attack on an encoder, or those that are poisoned.
        register: Registered model that gets the suspect (or the poisoned data set, where nothing is trained).
        model: A clean encoder in the registry, for attacks on encoders.
        arch: Architecture of a network that is trained; of `model`, where nothing is bound to it.
        normalization: Name of its normalization.
        image_size: Pixels.
        probe_data: Labelled images for the linear probe; `data` when left out.
        test_data: Labelled images for the evaluation.
        triggers: Specifications to plant instead of the attack's own trigger.
        output_data: Parquet file that the poisoned data set is written to.
        allow_stubbed: Read pickles of `model` that name unknown classes, as inert stubs.
    """

    data: str
    register: str | None = None
    model: str | None = None
    arch: str | None = None
    normalization: str | None = None
    image_size: int | None = None
    probe_data: str | None = None
    test_data: str | None = None
    triggers: Sequence[str | Path] = ()
    output_data: Path | None = None
    allow_stubbed: bool = False


def check_request(attack: Attack, trainer: Trainer | None, request: AttackRequest) -> None:
    """Whether the options go together.

    Raises:
        ConfigError: What is missing or too much.
    """
    poisoning = isinstance(attack, PoisoningAttack)
    if request.register is None and (request.output_data is None or not poisoning or trainer is not None):
        what = "suspect" if trainer or not poisoning else "poisoned data set (or --output-data FILE.parquet)"
        raise ConfigError(f"--register NAME is missing: the registered model that gets the {what}.")
    if request.register is not None:
        check_name(request.register)
    if poisoning and request.model is not None:
        raise ConfigError(f"{attack.name} poisons data: it takes no --model. Train a victim on it with --train.")
    if not poisoning and (request.model is None) == (trainer is None):
        raise ConfigError(
            f"{attack.name} changes a clean encoder: name one with --model, or have one trained with --train METHOD "
            "--arch NAME; one of the two."
        )
    if not poisoning and trainer is not None and trainer.kind != "encoder":
        raise ConfigError(f"{attack.name} attacks encoders, and {trainer.name} trains a {trainer.kind}.")
    if not poisoning and request.output_data is not None:
        raise ConfigError(f"{attack.name} poisons no data: there is nothing for --output-data.")
    network = {
        "--arch": request.arch,
        "--normalization": request.normalization,
        "--image-size": request.image_size,
    }
    missing = [option for option, value in network.items() if value is None]
    if trainer is not None and missing:
        raise ConfigError(f"--train {trainer.name} needs {', '.join(missing)}, too.")
    extra = {"--arch": request.arch, "--normalization": request.normalization, "--test-data": request.test_data}
    given = [option for option, value in extra.items() if value is not None]
    if trainer is None and request.model is None and given:
        raise ConfigError(f"{', '.join(given)}: no network is trained. Add --train METHOD, or leave it out.")
    if request.output_data is not None:
        if request.output_data.suffix != ".parquet":
            raise ConfigError(f"--output-data {request.output_data}: the name must end in .parquet.")
        if not request.output_data.absolute().parent.is_dir():
            raise ConfigError(f"--output-data {request.output_data}: there is no folder {request.output_data.parent}.")
