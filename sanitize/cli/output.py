"""The result on stdout, and in the files that were asked for."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sanitize.errors import ConfigError
from sanitize.reporting import FORMATS, SUFFIXES, render, write
from sanitize.types import Report, did_you_mean

if TYPE_CHECKING:
    from sanitize.preflight import Preflight

PRINTED = tuple(name for name in FORMATS if name != "html")


def check_outputs(format: str, outputs: Sequence[Path] | None) -> None:
    """Whether what is asked for can be written, before any work.

    Raises:
        ConfigError: Unknown format or suffix, or a folder that is missing or not writable.
    """
    if format not in PRINTED:
        raise ConfigError(f"--format {format}: unknown. {did_you_mean(format, PRINTED)}")
    for path in outputs or ():
        if path.suffix not in SUFFIXES:
            raise ConfigError(f"--output {path}: the suffix names the format; known are {', '.join(SUFFIXES)}.")
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            raise ConfigError(f"--output {path}: the folder {path.parent} does not exist or is not writable.")


def emit(report: Report, format: str, outputs: Sequence[Path] | None) -> None:
    """Print the report in one format, and write it in others."""
    for path in outputs or ():
        write(report, path, figures=report.figures)
    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    sys.stdout.write(render(report, format, color=color))


def preview(job: Callable[[], Preflight], format: str) -> None:
    """Print what a job would do.

    Raises:
        ConfigError: A dry run has no such format.
        SanitizeError: The job could not run.
    """
    if format not in ("table", "json"):
        raise ConfigError(f"--format {format}: a dry run is printed as table or json.")
    found = job()
    sys.stdout.write(found.to_text() if format == "table" else json.dumps(found.to_dict(), indent=2) + "\n")
