"""A rehearsal: work up to its first training step, which is where it has refused everything that it cannot use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from sanitize.training import Engine

Result = TypeVar("Result")


class _FirstStep(BaseException):
    """Not an error: nothing may catch it on the way."""


class _Rehearsal(Engine):
    def fit(self, *args: Any, **options: Any) -> NoReturn:
        raise _FirstStep


def rehearse(work: Callable[[Engine], Result], *, seed: int) -> Result | None:
    """Do `work` on the CPU, without training anything.

    Args:
        work: Is given an engine. It must leave alone what the real work is going to change.
        seed: As in the real work.

    Returns:
        The result of work that trains nothing; None where it came to its first training step.

    Raises:
        SanitizeError: What the real work would have raised before that step.

    Example:
        >>> rehearse(lambda engine: engine.seed, seed=3)
        3
    """
    try:
        return work(_Rehearsal(device="cpu", seed=seed))
    except _FirstStep:
        return None
