"""The command line: thin; every command is one file and calls what the Python interface offers."""

from __future__ import annotations

import functools
import importlib.metadata
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer

from sanitize.cli import (
    attack,
    attacks,
    bind,
    classifier,
    dataset,
    demo,
    doctor,
    encoder,
    gate,
    intake,
    methods,
    recipes,
    scan,
    serve,
    train,
    verify,
)
from sanitize.errors import SanitizeError
from sanitize.workdir import Workdir

EXIT_ERROR = 2

app = typer.Typer(
    name="sanitize",
    help="Find and remove backdoors in image encoders and classifiers, from an MLflow registry and back into it.",
    epilog="Exit codes: 0 pass, 1 fail, 2 error, 3 inconclusive. Start with `sanitize demo`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sanitize {importlib.metadata.version('model-sanitizer')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the `sanitize` command."""
    Workdir.owns_process = True
    app()


def _guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Turn every exception of a command into one paragraph on stderr and exit code 2."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except typer.Exit:
            raise
        except BaseException as error:
            if "--verbose" in sys.argv or "-v" in sys.argv:
                traceback.print_exc()
            typer.echo(_paragraph(error, resumable="resume" in options), err=True)
            raise typer.Exit(EXIT_ERROR) from error

    return run


def _paragraph(error: BaseException, *, resumable: bool) -> str:
    if isinstance(error, SanitizeError):
        return f"error: {' '.join(str(error).split())}"
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "interrupted." + (" Give the same command with --resume to continue." if resumable else "")
    if isinstance(error, OSError) and error.filename:
        return f"error: {error.filename}: {error.strerror}. Check the path, its permissions and the free space."
    return (
        f"internal error: {type(error).__name__}: {error}. `sanitize doctor` finds faults of the set-up; else run "
        "again with -v for the traceback, and report it."
    )


_COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo.demo,
    "encoder": encoder.encoder,
    "classifier": classifier.classifier,
    "dataset": dataset.dataset,
    "train": train.train,
    "attack": attack.attack,
    "attacks": attacks.attacks,
    "intake": intake.intake,
    "bind": bind.bind,
    "scan": scan.scan,
    "gate": gate.gate,
    "serve": serve.serve,
    "verify": verify.verify,
    "methods": methods.methods,
    "doctor": doctor.doctor,
}
for _name, _command in _COMMANDS.items():
    app.command(_name)(_guarded(_command))

_recipes = typer.Typer(invoke_without_command=True, rich_markup_mode=None)
_recipes.callback()(_guarded(recipes.recipes))
_recipes.command("show")(_guarded(recipes.show))
app.add_typer(_recipes, name="recipes")
