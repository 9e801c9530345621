"""What the gate found, kept in MLflow: one run a decision, found again by the digests of what it rests on."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sanitize.errors import TrackingError
from sanitize.reporting import render
from sanitize.tracking import RunRecorder, Store
from sanitize.tracking.digests import sha256_of
from sanitize.tracking.faults import tracking_errors
from sanitize.tracking.store import literal
from sanitize.types import Report

EXPERIMENT = "sanitize-gate"
KEY_TAG = "sanitize.gate_key"
DECISION_TAG = "sanitize.gate"
SUBJECT_TAG = "sanitize.subject_sha256"
OPENED_TAG = "sanitize.approved_sha256"
RECORD_TAG = "sanitize.record_sha256"
_RECORD = "gate.json"


@dataclass(frozen=True)
class Record:
    """What one examination found; waivers are not part of it.

    Args:
        scan: The report of the scan.
        cleaned: Of a purification that was tried: ``model_uri``, ``verdict``, ``sha256``; else None.
        tags: Of the run that it was read from.
        run_id: That run.
    """

    scan: Report
    cleaned: dict[str, Any] | None = None
    tags: dict[str, str] = field(default_factory=dict)
    run_id: str | None = None


def key_of(parts: dict[str, Any]) -> str:
    """Digest of everything that the verdict rests on.

    Example:
        >>> key_of({"model": "a", "policy": "b"}) == key_of({"policy": "b", "model": "a"})
        True
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def find(store: Store, key: str) -> Record | None:
    """The latest record of this key, or None.

    Raises:
        TrackingError: It is there, but was changed after it was written.
    """
    with tracking_errors("could not look for an earlier decision of the gate"):
        runs = _search(store, f"tags.`{KEY_TAG}` = {literal(key)}")
    if not runs:
        return None
    run = runs[0]
    with tempfile.TemporaryDirectory() as folder:
        file = store.fetch_run_file(run.info.run_id, _RECORD, Path(folder))
        if sha256_of(file) != run.data.tags.get(RECORD_TAG):
            raise TrackingError(
                f"{_RECORD} of run {run.info.run_id} was changed after it was written. Delete that run to have the "
                "model examined again, and find out who writes to the experiment of the gate."
            )
        values = json.loads(file.read_text(encoding="utf-8"))
    return Record(Report.from_dict(values["scan"]), values["cleaned"], dict(run.data.tags), run.info.run_id)


def write(store: Store, key: str, parts: dict[str, Any], record: Record, report: Report, tags: dict[str, str]) -> str:
    """Keep a decision; the id of its run.

    Args:
        store: MLflow.
        key: See `key_of`.
        parts: What the key was made of.
        record: What was found.
        report: What was concluded from it.
        tags: Decision, subject and approved digest.
    """
    content = {
        "schema_version": 1,
        "key": key,
        "parts": parts,
        "scan": record.scan.to_dict(),
        "cleaned": record.cleaned,
    }
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    digest = hashlib.sha256(text.encode()).hexdigest()
    name = f"gate {tags.get('sanitize.subject', '').removeprefix('models:/')}"
    with RunRecorder(store, experiment=EXPERIMENT, name=name) as recorder:
        recorder.text(_RECORD, text)
        recorder.text("report.json", report.to_json())
        recorder.text("report.html", render(report, "html", figures=()))
        recorder.tags(tags | {RECORD_TAG: digest, KEY_TAG: key})
        return recorder.run_id


def latest(store: Store, sha256: str) -> str | None:
    """Run with the latest decision about a model with this digest, or None.

    Raises:
        TrackingError: The store refused.
    """
    with tracking_errors("could not look for a decision of the gate"):
        runs = _search(store, f"tags.`{SUBJECT_TAG}` = {literal(sha256)}")
    return str(runs[0].info.run_id) if runs else None


def approved(store: Store, sha256: str) -> bool:
    """Whether the gate opened for files with this digest, and has not closed since.

    Raises:
        TrackingError: The store refused.
    """
    with tracking_errors("could not look for a decision of the gate"):
        runs = _search(store, f"tags.`{OPENED_TAG}` = {literal(sha256)}")
    return any(latest(store, run.data.tags[SUBJECT_TAG]) == run.info.run_id for run in runs)


def _search(store: Store, condition: str) -> list[Any]:
    experiment = store.client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return []
    return list(
        store.client.search_runs(
            [experiment.experiment_id],
            f"{condition} and attributes.status = 'FINISHED'",
            max_results=100,
            order_by=["attributes.start_time DESC"],
        )
    )
