"""From a cleaned network to a new version in the registry: all of it, verified, or nothing.

Order: files into the run and a logged model, read back and compared; one call that creates the version with all its
tags; lineage on the parent; the alias. A crash before that call leaves no version; after it, a resumed run finds the
version by its run and does what is missing.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import LoggedModelInput

from sanitize.errors import TrackingError
from sanitize.tracking.digests import sha256_of
from sanitize.tracking.faults import quiet, tracking_errors
from sanitize.tracking.intake import check_kind, check_name, ensure_model
from sanitize.tracking.model_folder import WEIGHTS_FILE, read_spec
from sanitize.tracking.runs import RunRecorder
from sanitize.tracking.staging import REPORT_FILE, Documents, Staged, discard, stage_model, verify_stored
from sanitize.tracking.store import ModelReference, Store
from sanitize.types import Report, Verdict

ALIAS = "sanitized"
CLEANED_TAG = "sanitize.cleaned"
RUN_TAG = "sanitize.run_id"
_DESCRIPTION_LENGTH = 5000  # of the registry's column
_RESULTS_KEPT = 20  # in the suspect's tag, the newest ones


@dataclass(frozen=True, kw_only=True)
class Released:
    """A version in the registry.

    Args:
        model_uri: For example ``models:/suspect/2``.
        version: Its number.
        alias: ``sanitized`` when it points here now, else None.
        onnx_uri: For example ``runs:/<id>/encoder.onnx``.
        model_id: Logged model behind the version, or None.
        report: As stored in the run.
        report_json: Its text, byte for byte.
    """

    model_uri: str
    version: str
    alias: str | None
    onnx_uri: str
    model_id: str | None
    report: Report
    report_json: str


@dataclass(frozen=True, kw_only=True)
class _Job:
    store: Store
    recorder: RunRecorder
    name: str
    reference: ModelReference
    package: Path
    onnx: Path
    method: str
    policy: str
    describe: Callable[[str], Documents]
    step: Callable[[str], None]

    def released_before(self) -> Any:
        """The version that this run has made already, or None."""
        run_id = self.recorder.run_id
        with tracking_errors(f"could not look up the versions of models:/{self.name}"):
            mine = [
                version
                for version in self.store.versions(self.name)
                if version.run_id == run_id and version.tags.get(RUN_TAG) == run_id
            ]
        return mine[-1] if mine else None


def target_name(reference: ModelReference, name: str | None = None) -> str:
    """Registered model that the cleaned version goes to.

    Args:
        reference: The subject.
        name: As the user wants it; None means that of the subject. A subject outside of the registry gives its
            artifact's name with the start of its id, for example ``model-3f2a91bc`` for ``runs:/3f2a91bc.../model``.

    Raises:
        TrackingError: The name cannot be one.
    """
    if name is None and reference.name is None:
        last = reference.uri.rstrip("/").rpartition("/")[2]
        owner = reference.model_id if last == reference.model_id else reference.run_id
        name = f"{'model' if last == reference.model_id else last}-{(owner or 'unknown').removeprefix('m-')[:8]}"
    name = name or reference.name or ""
    check_name(name)
    return name


def release(
    store: Store,
    recorder: RunRecorder,
    *,
    reference: ModelReference,
    package: Path,
    onnx: Path,
    method: str,
    describe: Callable[[str], Documents],
    policy: str = "default",
    name: str | None = None,
    step: Callable[[str], None] = lambda _: None,
) -> Released:
    """Register the cleaned model as the next version, with its verdict; the alias ``sanitized`` moves only on `pass`.

    The numbers of the report go to the run as ``before/...`` and ``after/...``; the latter to the logged model, too.

    Args:
        store: Where to.
        recorder: The run that made the model; still open.
        reference: The subject, from `Store.resolve`.
        package: Folder with ``model.safetensors`` and ``sanitize.json``.
        onnx: The ONNX file, for example ``encoder.onnx``; it keeps its name in the run.
        method: Name of the defence.
        describe: Makes the documents for the URI of the new version. Called again should another process take the
            number.
        policy: Name of the policy that gave the verdict.
        name: Registered model; None as in `target_name`.
        step: Told the name of each step before it is done, for progress.

    Raises:
        ExportError: Package or ONNX file are missing or do not belong together.
        TrackingError: The store refused, or gave back something else than was written. Then there is no new version,
            unless the message says so.
    """
    job = _Job(
        store=store,
        recorder=recorder,
        name=target_name(reference, name),
        reference=reference,
        package=package,
        onnx=onnx,
        method=method,
        policy=policy,
        describe=describe,
        step=step,
    )
    version = job.released_before() or _create(job)
    uri = f"models:/{job.name}/{version.version}"
    try:
        with tracking_errors("the store refused"):
            report_json = _settle_report(job, version, uri)
            model_id = store.resolve(uri).model_id
            alias = _finish(job, version, uri, model_id, Verdict(version.tags["sanitize.verdict"]))
    except TrackingError as error:
        raise TrackingError(
            f"{uri} is registered, but was not finished, and no alias points to it (--resume finishes it): {error}"
        ) from error
    return Released(
        model_uri=uri,
        version=str(version.version),
        alias=alias,
        onnx_uri=f"runs:/{recorder.run_id}/{onnx.name}",
        model_id=model_id,
        report=Report.from_dict(json.loads(report_json)),
        report_json=report_json,
    )


def _create(job: _Job) -> Any:
    """The new version, with everything behind it stored and compared before."""
    store, recorder = job.store, job.recorder
    check_kind(store, job.name, "model")
    read_spec(job.package)
    job.step("files")
    recorder.file(job.package, "package")
    recorder.file(job.onnx)
    job.step("model")
    staged = stage_model(store, recorder, job.package, job.onnx)
    made = False
    try:
        with tracking_errors(f"could not look up the versions of models:/{job.name}"):
            number = max((int(version.version) for version in store.versions(job.name)), default=0) + 1
        documents = job.describe(f"models:/{job.name}/{number}")
        job.step("documents")
        _record(job, documents, staged)
        job.step("verify")
        verify_stored(store, recorder.run_id, staged, job.package, job.onnx, documents)
        staged.finalize(store, recorder.run_id)
        job.step("version")
        with tracking_errors(f"could not register a version of models:/{job.name}"), quiet():
            made = ensure_model(store, job.name, "model")
            try:
                return _create_version(job, staged, documents)
            except Exception:
                version = job.released_before()
                if version is None:
                    raise
                return version  # only the answer was lost
    except BaseException:
        with suppress(Exception):
            if job.released_before() is None:
                discard(store, staged)
                if made:
                    store.client.delete_registered_model(job.name)
        raise


def _create_version(job: _Job, staged: Staged, documents: Documents) -> Any:
    tags = {
        "sanitize.verdict": str(documents.verdict),
        "sanitize.parent": job.reference.pinned_uri,
        "sanitize.method": job.method,
        "sanitize.policy": job.policy,
        "sanitize.sha256": sha256_of(job.package / WEIGHTS_FILE),
        "sanitize.onnx_file": job.onnx.name,
        "sanitize.onnx_sha256": sha256_of(job.onnx),
        "sanitize.model_sha256": staged.sha256,
        "sanitize.report_sha256": documents.report_sha256,
        RUN_TAG: job.recorder.run_id,
    }
    return job.store.client.create_model_version(
        job.name,
        # A server knows its logged models; a bare database would look the id up in MLflow's global store.
        f"models:/{staged.model_id}" if job.store.is_server else staged.source_uri,
        run_id=job.recorder.run_id,
        tags=tags,
        description=documents.description[:_DESCRIPTION_LENGTH],
        model_id=staged.model_id,
    )


def _record(job: _Job, documents: Documents, staged: Staged) -> None:
    """Documents, numbers and lineage into the run."""
    for file, text in documents.files.items():
        job.recorder.text(file, text)
    for moment, values in json.loads(documents.report_json)["metrics"].items():
        model_id = staged.model_id if moment == "after" else None
        job.recorder.summary({f"{moment}/{key}": value for key, value in values.items()}, model_id)
    if job.reference.model_id:
        with tracking_errors("could not log the subject as an input of the run"):
            job.store.client.log_inputs(job.recorder.run_id, models=[LoggedModelInput(job.reference.model_id)])


def _settle_report(job: _Job, version: Any, uri: str) -> str:
    """The report as stored; written again when it names another version, because someone else took the number."""
    with tempfile.TemporaryDirectory() as temporary:
        stored = job.store.fetch_run_file(job.recorder.run_id, REPORT_FILE, Path(temporary))
        digest, text = sha256_of(stored), stored.read_text(encoding="utf-8")
    report = Report.from_dict(json.loads(text))
    _require_verdict(report.verdict, version, uri)
    if report.model_uri == uri and digest == version.tags.get("sanitize.report_sha256"):
        return text
    job.step("renumber")
    documents = job.describe(uri)
    _require_verdict(documents.verdict, version, uri)
    for file, content in documents.files.items():
        job.recorder.text(file, content)
    client = job.store.client
    client.set_model_version_tag(version.name, version.version, "sanitize.report_sha256", documents.report_sha256)
    client.update_model_version(version.name, version.version, documents.description[:_DESCRIPTION_LENGTH])
    return documents.report_json


def _finish(job: _Job, version: Any, uri: str, model_id: str | None, verdict: Verdict) -> str | None:
    """Lineage, then the alias; the alias when it was moved."""
    parent, client = job.reference, job.store.client
    job.step("lineage")
    job.recorder.tags(
        {
            "sanitize.model_uri": uri,
            "sanitize.verdict": str(verdict),
            "sanitize.parent": parent.pinned_uri,
            "sanitize.method": job.method,
            "sanitize.policy": job.policy,
        }
    )
    if model_id:  # the tag that MLflow's UI reads to name the version on the page of the logged model
        link = json.dumps([{"name": job.name, "version": version.version}])
        client.set_logged_model_tags(model_id, {"mlflow.modelVersions": link})
    if parent.name and parent.version:
        earlier = client.get_model_version(parent.name, parent.version).tags.get(CLEANED_TAG, "").split(", ")
        results = [*(other for other in earlier if other and other != uri), uri][-_RESULTS_KEPT:]
        client.set_model_version_tag(parent.name, parent.version, CLEANED_TAG, ", ".join(results))
    if verdict is not Verdict.PASS:
        return None
    job.step("alias")
    client.set_registered_model_alias(job.name, ALIAS, str(version.version))
    return ALIAS


def _require_verdict(verdict: Verdict, version: Any, uri: str) -> None:
    recorded = version.tags.get("sanitize.verdict")
    if verdict != recorded:
        raise TrackingError(f"{uri} is tagged {recorded}, but its report says {verdict}. No alias was moved.")
