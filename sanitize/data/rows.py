"""The row suffix of a source: `#start:stop[:step]`, or `#~count` for a random sample."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sanitize.errors import DataError

_SUFFIX = re.compile(r"#(?:~(\d+)|(-?\d*):(-?\d*)(?::(\d*))?)$")


@dataclass(frozen=True)
class Rows:
    """Which rows of a source are wanted, in ascending order.

    Args:
        window: A Python slice with a positive step; everything when its parts are None.
        sample: This many rows without replacement instead, or None.
        seed: Of the sample.
    """

    window: slice = field(default_factory=lambda: slice(None))
    sample: int | None = None
    seed: int = 0

    @classmethod
    def split(cls, source: str, seed: int = 0) -> tuple[str, Rows]:
        """Take the suffix off a source.

        Example:
            >>> Rows.split("digits#0:140")
            ('digits', Rows(window=slice(0, 140, None), sample=None, seed=0))
        """
        match = _SUFFIX.search(source)
        if match is None:
            return source, cls()
        sample, *window = match.groups()
        name = source[: match.start()]
        if sample is not None:
            return name, cls(sample=int(sample), seed=seed)
        if window[2] and int(window[2]) == 0:
            raise DataError(f"the step of the row slice in {source} is 0; it must be 1 or more.")
        return name, cls(slice(*(int(part) if part else None for part in window)))

    def indices(self, count: int, source: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Ascending row numbers, out of `count` rows.

        Raises:
            DataError: Nothing is left, or the sample is larger than the set.
        """
        if count == 0:
            raise DataError(f"{source} holds no images.")
        if self.sample is not None and self.sample > count:
            raise DataError(f"{source} asks for {self.sample} of {count} rows. Ask for fewer.")
        if self.sample is None:
            chosen = np.arange(count, dtype=np.int64)[self.window]
        else:
            chosen = np.sort(np.random.default_rng(self.seed).choice(count, self.sample, replace=False))
        if len(chosen) == 0:
            raise DataError(f"{source} selects no rows: the set has {count}. Widen the slice.")
        return chosen
