"""What a release stores before a version exists, and the proof that the store kept it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from mlflow.entities import LoggedModelOutput

from sanitize.errors import TrackingError
from sanitize.tracking.digests import files_in, sha256_of, sha256_of_text
from sanitize.tracking.faults import quiet, tracking_errors
from sanitize.tracking.model_folder import read_spec, write_model_folder
from sanitize.tracking.runs import RunRecorder
from sanitize.tracking.store import ModelReference, Store
from sanitize.types import Verdict

REPORT_FILE = "report.json"


@dataclass(frozen=True, kw_only=True)
class Documents:
    """What is written about one version.

    Args:
        report_json: The report; its verdict decides on the alias.
        report_html: The same for people.
        description: Markdown for the page of the version: verdict, before/after table.
        verdict: As in the report.
        more: Further text files, file name -> text.
    """

    report_json: str
    report_html: str
    description: str
    verdict: Verdict
    more: Mapping[str, str] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, str]:
        """File name -> text."""
        return {REPORT_FILE: self.report_json, "report.html": self.report_html, **self.more}

    @property
    def report_sha256(self) -> str:
        """Digest of ``report.json``."""
        return sha256_of_text(self.report_json)


@dataclass(frozen=True, kw_only=True)
class Staged:
    """A logged model without a version.

    Args:
        model_id: ``m-...``.
        source_uri: Where its files lie.
        sha256: Digest of their folder, see `sanitize.tracking.digests`.
    """

    model_id: str
    source_uri: str
    sha256: str

    def finalize(self, store: Store, run_id: str) -> None:
        """Mark it as ready, and as an output of the run.

        Raises:
            TrackingError: The store refused.
        """
        with tracking_errors("could not finish the logged model"):
            store.client.log_outputs(run_id, [LoggedModelOutput(self.model_id, step=0)])
            store.client.finalize_logged_model(self.model_id, "READY")


def stage_model(store: Store, recorder: RunRecorder, package: Path, onnx: Path) -> Staged:
    """Store package and ONNX file as a logged model of the run.

    Raises:
        ExportError: Package or ONNX file cannot be read.
        TrackingError: The store refused.
    """
    client, run_id = store.client, recorder.run_id
    spec = read_spec(package)
    names = ("kind", "architecture", "image_size", "output_size")
    params: dict[str, str] = {key: str(spec[key]) for key in names if key in spec}
    with tracking_errors("could not log the cleaned model"), quiet(), tempfile.TemporaryDirectory() as temporary:
        for left in client.search_logged_models([recorder.experiment_id], filter_string=f"source_run_id = '{run_id}'"):
            client.delete_logged_model(left.model_id)  # of an attempt that was killed
        model = client.create_logged_model(
            recorder.experiment_id, name=onnx.stem, source_run_id=run_id, params=params, model_type="sanitized"
        )
        staged = Staged(model_id=model.model_id, source_uri=model.artifact_location, sha256="")
        try:
            folder = Path(temporary) / "model"
            write_model_folder(folder, package=package, onnx=onnx, run_id=run_id, model_id=model.model_id)
            client.log_model_artifacts(model.model_id, str(folder))
        except BaseException:
            discard(store, staged)
            raise
        return Staged(model_id=staged.model_id, source_uri=staged.source_uri, sha256=sha256_of(folder))


def discard(store: Store, staged: Staged) -> None:
    """Delete a logged model that did not become a version; silent, since something else went wrong before."""
    with suppress(Exception):
        store.client.delete_logged_model(staged.model_id)


def verify_stored(store: Store, run_id: str, staged: Staged, package: Path, onnx: Path, documents: Documents) -> None:
    """Read everything back from the store and compare.

    Raises:
        TrackingError: Something came back changed, or not at all.
    """
    expected = {f"package/{file}": sha256_of(package / file) for file in files_in(package)}
    expected |= {onnx.name: sha256_of(onnx)}
    expected |= {file: sha256_of_text(text) for file, text in documents.files.items()}
    with tempfile.TemporaryDirectory() as temporary:
        back = Path(temporary)
        for file, digest in expected.items():
            found = sha256_of(store.fetch_run_file(run_id, file, (back / "run" / file).parent))
            _require(found == digest, file)
        reference = ModelReference(uri=f"models:/{staged.model_id}", source_uri=staged.source_uri)
        _require(sha256_of(store.download(reference, back / "model")) == staged.sha256, "the model")


def _require(same: bool, what: str) -> None:
    if not same:
        raise TrackingError(f"{what} came back changed from the store. Nothing was registered; check the storage.")
