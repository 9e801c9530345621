"""`sanitize demo`: the main job on a bundled real data set, in an embedded registry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sanitize.cli import options

NAME = "suspect"


def demo(
    workdir: Annotated[Path, typer.Option("--workdir", metavar="DIR", help="All that is written goes here.")] = Path(
        "sanitize-demo"
    ),
    device: options.Device = "auto",
    seed: options.Seed = 0,
    format: options.Format = "table",
    output: options.Output = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Make a backdoored encoder, register it, and clean it: two minutes on two CPU cores.

    Trains a small SimCLR encoder on scikit-learn's digits, plants a backdoor, takes it in as models:/suspect/1 into an
    embedded MLflow store, then does what `sanitize encoder models:/suspect/1 --method bmaiu` does.
    """
    from sanitize.cli.output import check_outputs, emit
    from sanitize.demonstration import Demonstration
    from sanitize.sanitizer import Sanitizer
    from sanitize.training import Display
    from sanitize.workdir import Workdir

    check_outputs(format, output)
    display = Display(quiet=quiet)
    with Workdir(workdir) as folder:
        tracking_uri = f"sqlite:///{folder.path / 'mlflow.db'}"
        taken = Demonstration(seed=seed).make(
            folder.path, NAME, tracking_uri=tracking_uri, device=device, display=display
        )
    if not taken.uri.endswith("/1"):
        display.say(
            f"There is a models:/{NAME} here already, from an earlier demo; this suspect is a new version of it."
        )
    display.say(f"Registered as {taken.uri}. Now: sanitize encoder {taken.uri} --method bmaiu")
    report = Sanitizer(
        defense="bmaiu",
        device=device,
        seed=seed,
        tracking_uri=tracking_uri,
        workdir=workdir / taken.uri.removeprefix("models:/").replace("/", "-"),
        display=display,
    ).run(taken.uri)
    emit(report, format, output)
    raise typer.Exit(report.verdict.exit_code)
