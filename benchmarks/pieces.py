"""Pieces of at most so many minutes: what is half done continues from its checkpoints at the next start."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class OutOfTime(BaseException):
    """The piece is over; not an `Exception`, so that nothing on the way takes it for a failure."""


@contextmanager
def time_limit(minutes: float | None) -> Iterator[None]:
    """Leave the block after so many minutes, saying how to go on.

    Args:
        minutes: None for no limit.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    previous = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, (minutes or 0) * 60)
        yield
    except OutOfTime:
        print(f"the {minutes:g} minutes are over; give the same command again to continue.", flush=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
