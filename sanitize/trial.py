"""How long a job is going to take: its own work, a few steps of each stage, on copies and without records."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from sanitize.suspects import Network
from sanitize.training import Display, Engine, History
from sanitize.training.progress import StageProgress

_STEPS = 4
"""Of each stage that are tried; the first one warms up, and is not timed."""

_PASS = 64
"""Images by which the evaluation is timed."""

LIMIT = 20.0
"""Seconds after which a trial ends."""


class _Enough(BaseException):
    """Not an error: nothing may catch it on the way."""


@dataclass(frozen=True)
class StageEstimate:
    """One stage of training.

    Args:
        name: Of the stage.
        steps: Optimizer steps that it is going to make.
        seconds: That they are going to take.
    """

    name: str
    steps: int
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """What a trial found out.

    Args:
        stages: Those that were reached.
        seconds: Of all that was reached, with what lies between the stages; None where no stage was.
        memory: Peak of the trial in bytes: of the GPU, else of the process; None where it is not known.
        complete: Whether the trial came to the end of the work.
        note: What is not in the numbers.
    """

    stages: tuple[StageEstimate, ...]
    seconds: float | None
    memory: int | None
    complete: bool
    note: str


def estimate(
    work: Callable[[Engine], object], network: Network, engine: Engine, *, limit: float | None = None
) -> Estimate:
    """Do `work` with a few steps of each stage, and extrapolate.

    Args:
        work: Is given an engine. It must leave `network` alone.
        network: That the work begins with.
        engine: Device, precision and seed of the trial.
        limit: Seconds after which the trial ends at the next pass through the network; `LIMIT` when left out.

    Raises:
        SanitizeError: The work refuses its inputs before the first stage.
    """
    clock = _Clock(LIMIT if limit is None else limit)
    handle = network.backbone.register_forward_hook(lambda *_: clock.stop_when_late())
    trial = _Trial(engine, clock)
    cuda = engine.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(engine.device)
    complete, note = False, ""
    try:
        work(trial)
        complete = True
    except _Enough:
        note = f"later work is not in it: the trial ended after {clock.limit:.0f} s"
    except Exception:
        if not clock.stages:
            raise
        note = "later work is not in it: it needs a stage that was trained to its end"
    finally:
        handle.remove()
    outside = clock.elapsed - clock.in_stages
    return Estimate(
        stages=tuple(clock.stages),
        seconds=outside + sum(stage.seconds for stage in clock.stages) if clock.stages or complete else None,
        memory=torch.cuda.max_memory_allocated(engine.device) if cuda else _peak_of_the_process(),
        complete=complete,
        note=note or "work that depends on what is found may come on top",
    )


def seconds_of_passes(network: Network, images: int, engine: Engine) -> float:
    """How long it takes to send so many images through a network, from a second batch of them.

    Args:
        network: Is left in eval mode.
        images: How many.
        engine: Device and precision.
    """
    if images == 0:
        return 0.0
    size = network.spec.image_size
    batch = torch.rand(_PASS, 3, size, size, generator=torch.Generator().manual_seed(engine.seed)).to(engine.device)
    for _ in range(2):  # the first one warms up
        started = time.perf_counter()
        engine.forward(network, lambda indices: batch[indices], _PASS)
    return (time.perf_counter() - started) / _PASS * images


class _Clock:
    def __init__(self, limit: float) -> None:
        self.started = time.perf_counter()
        self.limit = limit
        self.stages: list[StageEstimate] = []
        self.in_stages = 0.0

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    def stop_when_late(self) -> None:
        if self.elapsed > self.limit:
            raise _Enough


class _Trial(Engine):
    """An engine whose stages end after a few steps."""

    def __init__(self, engine: Engine, clock: _Clock) -> None:
        super().__init__(
            device=engine.settings["device"].split(":")[0],
            precision=engine.settings["precision"],
            strategy=engine.settings["strategy"],
            seed=engine.seed,
        )
        self._clock = clock

    def fit(self, stage: str, network: nn.Module, *args: Any, **options: Any) -> History:
        """A few steps; the history says no more than that there were some."""
        watch = self.display = _Stopwatch(self.device)
        started = time.perf_counter()
        late = False
        try:
            super().fit(stage, network, *args, **options)
        except _Enough:
            late = not watch.done
        if watch.times:
            epochs = options["epochs"] if options.get("companion") is not None else 0
            self._clock.stages.append(StageEstimate(stage, watch.steps, watch.seconds(epochs)))
        self._clock.in_stages += time.perf_counter() - started
        if late:
            raise _Enough
        network.eval()
        return History(epochs=[{"loss": math.nan}], steps=watch.steps)


class _Stopwatch(Display):
    """Notes when the steps of one stage end, and ends the stage after a few."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(quiet=True)
        self.steps = 0
        self.times: list[float] = []
        self._device = device

    @property
    def done(self) -> bool:
        return len(self.times) >= min(_STEPS, self.steps)

    def stage(self, name: str, steps: int) -> StageProgress:
        self.steps = steps
        return self

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def advance(self, images: int) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.times.append(time.perf_counter() - self._began)
        if self.done:
            raise _Enough

    def epoch(self, number: int, loss: float) -> None:
        return None

    def seconds(self, preparations: int) -> float:
        """Of the whole stage, in which something is prepared so often."""
        first, last = self.times[0], self.times[-1]
        step = (last - first) / (len(self.times) - 1) if len(self.times) > 1 else first
        return step * self.steps + max(0.0, first - step) * preparations


def _peak_of_the_process() -> int | None:
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
