"""A buffer between a fast training loop and a slow store."""

from __future__ import annotations

import time
from typing import Any

from mlflow.entities import Metric

from sanitize.errors import TrackingError
from sanitize.tracking.faults import tracking_errors
from sanitize.tracking.store import Store

_FLUSH_SECONDS = 1.0
_RETRY_SECONDS = 30.0  # a store that is away for a moment must not stop hours of training
_PER_CALL = 1000  # MLflow's limit


class MetricBuffer:
    """Collects metric points and writes them with `log_batch`, at most about once a second.

    Args:
        store: Where the runs are.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._points: dict[str, list[Metric]] = {}
        self._written: dict[tuple[str, str], int] = {}  # (run, name) -> last step that the run had when it was resumed
        self._next_flush = 0.0

    def resume(self, run: Any) -> None:
        """Leave out the steps that a run has already; it is resumed and will report them again."""
        for name in run.data.metrics:
            history = self._store.client.get_metric_history(run.info.run_id, name)
            self._written[(run.info.run_id, name)] = max((point.step for point in history), default=-1)

    def add(self, run_id: str, name: str, value: float, step: int) -> None:
        """One point of a curve."""
        if step > self._written.get((run_id, name), -1):
            self._points.setdefault(run_id, []).append(Metric(name, float(value), now(), step))

    def flush_when_due(self) -> None:
        """Write when the last time is a while ago; a store that refuses is tried again later."""
        if time.monotonic() < self._next_flush:
            return
        try:
            self.flush()
        except TrackingError:
            self._next_flush = time.monotonic() + _RETRY_SECONDS

    def flush(self) -> None:
        """Write everything.

        Raises:
            TrackingError: The store refused; what it did not take stays here.
        """
        with tracking_errors("could not write the metrics"):
            for run_id in list(self._points):
                write(self._store, run_id, self._points[run_id])
                del self._points[run_id]
        self._next_flush = time.monotonic() + _FLUSH_SECONDS


def write(store: Store, run_id: str, points: list[Metric]) -> None:
    """Write points in as few calls as MLflow allows."""
    for start in range(0, len(points), _PER_CALL):
        store.client.log_batch(run_id, metrics=points[start : start + _PER_CALL])


def now() -> int:
    """Milliseconds since 1970, as MLflow counts."""
    return int(time.time() * 1000)
