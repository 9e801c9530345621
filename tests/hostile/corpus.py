"""What an artifact of the corpus is, and how one is entered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Build = Callable[[Path], Path]


@dataclass(frozen=True)
class Artifact:
    """One hostile or broken input.

    Args:
        build: Writes it into an empty folder and gives the path that the reader gets.
        reader: Which reader it is for.
        refused: Pattern of the error's message; None when the reader copes with it.
        finding: Rule of the finding that must be made when it is read; None where the numbers say all.
        error: Name of the error.
    """

    build: Build
    reader: Literal["model", "data"]
    refused: str | None = None
    finding: str | None = None
    error: str = "ArtifactError"


ARTIFACTS: dict[str, Artifact] = {}


def enter(name: str, build: Build, reader: Literal["model", "data"] = "model", **expected: str) -> None:
    """Add an artifact; names are unique."""
    assert name not in ARTIFACTS, name
    ARTIFACTS[name] = Artifact(build, reader, **expected)


def unsafe(name: str, build: Build, refused: str) -> None:
    """Add a model file that must be refused as unsafe."""
    enter(name, build, refused=refused, error="UnsafeArtifactError")
