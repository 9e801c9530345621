"""`sanitize attack`: plant a known backdoor, for drills and benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sanitize.cli import options

if TYPE_CHECKING:
    from sanitize.red_team import Planted

FORMATS = ("table", "json")


def attack(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Attack (`sanitize attacks`).")],
    data: Annotated[
        str,
        typer.Option("--data", metavar="DATA", help="Clean labelled images: to poison, or the attacker's own."),
    ],
    register: Annotated[
        str | None, typer.Option("--register", metavar="NAME", help="Registered model that gets the suspect.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="URI", help="Clean encoder to attack: models:/name/1.")
    ] = None,
    train: Annotated[
        str | None,
        typer.Option("--train", metavar="METHOD", help="Train the encoder to attack, or a victim of poisoned data."),
    ] = None,
    trigger: Annotated[
        list[Path] | None,
        typer.Option("--trigger", metavar="SPEC.yaml", help="Plant this instead of the attack's own. Repeatable."),
    ] = None,
    recipe: options.Recipe = None,
    settings: options.Settings = None,
    train_recipe: Annotated[
        str | None, typer.Option("--train-recipe", metavar="NAME", help="Settings of --train for a data scale.")
    ] = None,
    train_settings: Annotated[
        list[str] | None,
        typer.Option("--train-set", metavar="KEY=VALUE", help="One hyperparameter of --train. Repeatable."),
    ] = None,
    probe_data: options.ProbeData = None,
    test_data: options.TestData = None,
    arch: options.Arch = None,
    normalization: options.Normalization = None,
    image_size: options.ImageSize = None,
    output_data: Annotated[
        Path | None, typer.Option("--output-data", metavar="FILE.parquet", help="Also write the poisoned data set.")
    ] = None,
    allow_stubbed: options.AllowStubbed = False,
    device: options.Device = "auto",
    precision: options.Precision = "32-true",
    seed: options.Seed = 0,
    tracking_uri: options.TrackingUri = None,
    format: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="What is printed: table or json.")
    ] = "table",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Plant a known backdoor and register the suspect, as it would arrive from others; for drills and benchmarks.

    The truth (poisoned images, true labels, trigger, parameters) goes to the experiment sanitize-red-team, where only
    the evaluation reads it.
    """
    from sanitize.attacks import attack_named
    from sanitize.errors import ConfigError
    from sanitize.recipes import configure
    from sanitize.red_team import AttackRequest, RedTeam
    from sanitize.trainers import trainer_named
    from sanitize.training import Display
    from sanitize.types import did_you_mean

    if format not in FORMATS:
        raise ConfigError(f"--format {format}: unknown. {did_you_mean(format, FORMATS)}")
    made = configure(name, recipe=recipe, settings=settings or [], named=attack_named)
    trainer = None
    if train or train_recipe:
        trainer = configure(
            train, recipe=train_recipe, settings=train_settings or [], named=trainer_named, option="--train-set"
        )
    elif train_settings:
        raise ConfigError("--train-set is about a training: name it with --train METHOD.")
    team = RedTeam(
        made,
        trainer=trainer,
        device=device,
        precision=precision,
        seed=seed,
        tracking_uri=tracking_uri,
        display=Display(quiet=quiet),
    )
    planted = team.run(
        AttackRequest(
            data=data,
            register=register,
            model=model,
            arch=arch,
            normalization=normalization,
            image_size=image_size,
            probe_data=probe_data,
            test_data=test_data,
            triggers=trigger or (),
            output_data=output_data,
            allow_stubbed=allow_stubbed,
        )
    )
    if format == "json":
        typer.echo(json.dumps(planted.to_dict(), indent=2))
    else:
        _show(planted)


def _show(planted: Planted) -> None:
    from rich.console import Console
    from rich.table import Table

    from sanitize.reporting.wording import metric_title, number

    console = Console()
    where = planted.uri or planted.file
    console.print(f"planted {planted.attack} in {where} ({planted.subject})", markup=False, soft_wrap=True)
    if planted.poisoned is not None and planted.share is not None:
        console.print(f"{planted.poisoned} of {planted.images} images are poisoned ({planted.share:.2%})")
    for trigger in planted.triggers:
        console.print(f"trigger {trigger['name']}, target {trigger['target']}", markup=False)
    if planted.suspect:
        table = Table("measure", "clean encoder", "suspect") if planted.clean else Table("measure", "suspect")
        for key, value in planted.suspect.items():
            sides = (planted.clean.get(key), value) if planted.clean else (value,)
            table.add_row(metric_title(key), *(number(side, True) for side in sides))
        console.print(table)
    if planted.established is False:
        console.print("NOT ESTABLISHED: the trigger hardly works on the suspect, so its absence later shows nothing.")
    elif planted.established is None and planted.suspect:
        console.print("whether the attack works was not measured; give --test-data")
    console.print(f"the truth is in run {planted.truth_run} of the experiment sanitize-red-team", soft_wrap=True)
