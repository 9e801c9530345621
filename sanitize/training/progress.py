"""What a person sees while a stage runs: a bar on a terminal, a line now and then elsewhere; always on stderr."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class StageProgress(Protocol):
    """Told about every optimizer step of one stage."""

    def __enter__(self) -> Self:
        """Start showing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop showing."""

    def advance(self, images: int) -> None:
        """One step on so many images is done."""

    def epoch(self, number: int, loss: float) -> None:
        """An epoch ended with this mean loss."""


class Display:
    """Makes the progress of each stage.

    Args:
        quiet: Show nothing.
        console: Where to write; stderr by default.
        seconds_between_lines: How often a line is written where there is no terminal.
    """

    def __init__(
        self, *, quiet: bool = False, console: Console | None = None, seconds_between_lines: float = 10.0
    ) -> None:
        self.quiet = quiet
        self.console = console or Console(stderr=True)
        self.seconds_between_lines = seconds_between_lines

    def stage(self, name: str, steps: int) -> StageProgress:
        """Progress of one stage of so many optimizer steps."""
        if self.quiet:
            return _Silent()
        if self.console.is_terminal:
            return _Bar(name, steps, self.console)
        return _Lines(name, steps, self.console, self.seconds_between_lines)

    def say(self, message: str) -> None:
        """One line between stages."""
        if not self.quiet:
            self.console.print(message, markup=False, highlight=False, soft_wrap=True)


class _Silent:
    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def advance(self, images: int) -> None:
        return None

    def epoch(self, number: int, loss: float) -> None:
        return None


class _Bar(_Silent):
    def __init__(self, name: str, steps: int, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]} | {task.fields[speed]} images/s"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task: TaskID = self._progress.add_task(name, total=steps, loss="-", speed="-")
        self._images = 0
        self._start = time.perf_counter()

    def __enter__(self) -> Self:
        self._progress.start()
        self._start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def advance(self, images: int) -> None:
        self._images += images
        speed = self._images / max(time.perf_counter() - self._start, 1e-9)
        self._progress.update(self._task, advance=1, speed=f"{speed:,.0f}")

    def epoch(self, number: int, loss: float) -> None:
        self._progress.update(self._task, loss=f"{loss:.3f}")


class _Lines(_Silent):
    def __init__(self, name: str, steps: int, console: Console, seconds: float) -> None:
        self._name, self._steps, self._console, self._seconds = name, steps, console, seconds
        self._step = self._images = 0
        self._loss = float("nan")

    def __enter__(self) -> Self:
        self._start = self._last = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._write(time.perf_counter())

    def advance(self, images: int) -> None:
        self._step += 1
        self._images += images
        now = time.perf_counter()
        if now - self._last >= self._seconds and self._step < self._steps:
            self._last = now
            self._write(now)

    def epoch(self, number: int, loss: float) -> None:
        self._loss = loss

    def _write(self, now: float) -> None:
        if not self._step:
            return
        elapsed = now - self._start
        left = elapsed / self._step * (self._steps - self._step)
        loss = "" if self._loss != self._loss else f", loss {self._loss:.3f}"
        self._console.print(
            f"{self._name}: step {self._step}/{self._steps}{loss}, {self._images / max(elapsed, 1e-9):,.0f} images/s, "
            f"{elapsed:.0f} s so far, {left:.0f} s left",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
