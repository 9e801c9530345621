"""Where the numbers of a run go; MLflow's side of it is handed in by `sanitize.tracking`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Recorder(Protocol):
    """What training and defences may tell the outside while they work."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """One stage of the run; everything recorded inside belongs to it."""

    def metrics(self, stage: str, values: Mapping[str, float], step: int) -> None:
        """Numbers of one epoch."""


class NullRecorder:
    """Records nothing: for use without MLflow."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Does nothing."""
        return nullcontext()

    def metrics(self, stage: str, values: Mapping[str, float], step: int) -> None:
        """Does nothing."""
