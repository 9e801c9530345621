"""What is done with a delivery: the gate for a candidate, and a look at whatever was approved."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sanitize.errors import SanitizeError, TrackingError
from sanitize.gate import Gate
from sanitize.gate.identity import identity_of_model
from sanitize.gate.records import approved
from sanitize.inputs import Request
from sanitize.serve.queue import Job, Queue
from sanitize.tracking import RunRecorder, Store
from sanitize.tracking.faults import tracking_errors

ALARM_TAG = "sanitize.alarm"
ALARMS = "sanitize-alarms"
ALIAS_SET = "model_version_alias.created"
PAUSE = 0.2
_log = logging.getLogger("sanitize.serve")


class Worker:
    """Works on deliveries one after the other.

    Args:
        gate: Decides about candidates.
        candidate: Alias that asks for a decision.
        allow_stubbed: As in `sanitize.inputs.Request`.
    """

    def __init__(self, gate: Gate, *, candidate: str = "candidate", allow_stubbed: bool = False) -> None:
        self.gate = gate
        self.candidate = candidate
        self.allow_stubbed = allow_stubbed

    def handle(self, job: Job) -> str:
        """What came of one delivery, in a few words.

        Raises:
            TrackingError: MLflow is out of reach; try again.
        """
        if job.event != ALIAS_SET:
            return "ignored: nothing to do for this event"
        name, version, alias = (str(job.data.get(key, "")) for key in ("name", "version", "alias"))
        uri = f"models:/{name}/{version}"
        if alias == self.gate.alias:
            return watch(self.gate.store, uri, alias)
        if alias == self.candidate:
            report = self.gate.run(Request(model=uri, allow_stubbed=self.allow_stubbed))
            return f"{uri}: {report.outputs['gate']}"
        return "ignored: nothing to do for this alias"

    def work(self, queue: Queue, wanted: Callable[[], bool]) -> None:
        """Take deliveries as long as the worker is wanted."""
        queue.recover()
        while wanted():
            job = queue.take()
            if job is None:
                time.sleep(PAUSE)
                continue
            try:
                result = self.handle(job)
            except TrackingError as error:
                _log.warning("delivery %s: %s; it is tried again", job.id, error)
                queue.postpone(job, str(error))
            except SanitizeError as error:
                _log.warning("delivery %s: %s", job.id, error)
                queue.finish(job, f"refused: {error}")
            except Exception as error:
                _log.exception("delivery %s: internal error", job.id)
                queue.finish(job, f"internal error: {type(error).__name__}: {error}", failed=True)
            else:
                _log.info("delivery %s: %s", job.id, result)
                queue.finish(job, result)


def watch(store: Store, uri: str, alias: str) -> str:
    """Raise an alarm if a version got the alias without a decision of the gate for its files.

    The alarm is a line in the log, the tag ``sanitize.alarm`` of the version, and a run in ``sanitize-alarms``.

    Raises:
        TrackingError: MLflow is out of reach.
    """
    reference = store.resolve(uri)
    with tempfile.TemporaryDirectory() as folder:
        sha256 = identity_of_model(store, uri, Path(folder) / "model")
    if approved(store, sha256):
        return f"{uri}: {alias}, as the gate decided"
    message = f"{uri} got the alias {alias!r}, and the gate never let its files pass (sha256 {sha256})"
    _log.error("ALARM: %s", message)
    tags = {ALARM_TAG: message, "sanitize.subject": uri, "sanitize.subject_sha256": sha256}
    with tracking_errors(f"could not record the alarm about {uri}"):
        store.client.set_model_version_tag(reference.name or "", reference.version or "", ALARM_TAG, message)
        with RunRecorder(store, experiment=ALARMS, name=f"alarm {uri.removeprefix('models:/')}") as recorder:
            recorder.tags(tags)
    return f"ALARM: {message}"
