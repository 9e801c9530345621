"""A cleaned data set into the registry, with its way back to the suspect data."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from sanitize.errors import TrackingError
from sanitize.tracking.copying import join_uri
from sanitize.tracking.digests import sha256_of
from sanitize.tracking.faults import quiet, tracking_errors
from sanitize.tracking.intake import check_kind, check_name, ensure_model
from sanitize.tracking.release import CLEANED_TAG
from sanitize.tracking.runs import RunRecorder
from sanitize.tracking.store import KIND_TAG, ModelReference, Store
from sanitize.types import Verdict

FOLDER = "clean-data"


def release_data(
    store: Store,
    recorder: RunRecorder,
    file: Path,
    *,
    name: str,
    parent: str,
    reference: ModelReference | None,
    method: str,
    verdict: Verdict,
    description: str,
) -> str:
    """Register a cleaned data set as the next version of ``models:/name``; again for the same run, the same version.

    The file is stored in the run and read back before the version is made. No alias is moved: what was found speaks
    about the suspect data, and that enough was found is not known.

    Args:
        store: Where to.
        recorder: The run that cleaned; still open.
        file: What is left, as Parquet.
        name: Registered data set; made when missing.
        parent: The suspect data, with its rows.
        reference: The suspect data in the registry; None for data from elsewhere.
        method: Name of the detector.
        verdict: On the suspect data.
        description: Markdown, for the page of the version.

    Returns:
        ``models:/NAME/VERSION``.

    Raises:
        TrackingError: The name belongs to a model, or the store refused. No version is left then, unless only the tag
            of the suspect data is missing.
    """
    check_name(name)
    check_kind(store, name, "data")
    version = _made_before(store, name, recorder.run_id) or _create(
        store,
        recorder,
        file,
        name,
        {
            KIND_TAG: "data",
            "sanitize.file": file.name,
            "sanitize.sha256": sha256_of(file),
            "sanitize.parent": parent,
            "sanitize.method": method,
            "sanitize.verdict": str(verdict),
        },
        description,
    )
    uri = f"models:/{name}/{version.version}"
    with tracking_errors(f"{uri} is registered, but {parent} could not be told"):
        recorder.tags({"sanitize.data_uri": uri})
        if reference is not None and reference.name and reference.version:
            store.client.set_model_version_tag(reference.name, reference.version, CLEANED_TAG, uri)
    return uri


def _made_before(store: Store, name: str, run_id: str) -> Any:
    with tracking_errors(f"could not look up the versions of models:/{name}"):
        mine = [version for version in store.versions(name) if version.run_id == run_id]
    return mine[-1] if mine else None


def _create(store: Store, recorder: RunRecorder, file: Path, name: str, tags: dict[str, str], description: str) -> Any:
    recorder.file(file, FOLDER)
    with tempfile.TemporaryDirectory() as folder:
        stored = store.fetch_run_file(recorder.run_id, f"{FOLDER}/{file.name}", Path(folder))
        if sha256_of(stored) != tags["sanitize.sha256"]:
            raise TrackingError(f"{file.name} did not arrive as it was sent in run {recorder.run_id}. Try again.")
    with tracking_errors(f"could not register models:/{name}"), quiet():
        run = store.client.get_run(recorder.run_id)
        made = ensure_model(store, name, "data")
        try:
            return store.client.create_model_version(
                name,
                join_uri(run.info.artifact_uri, FOLDER),
                recorder.run_id,
                tags=tags,
                description=description,
            )
        except BaseException:
            if made:
                with suppress(Exception):
                    store.client.delete_registered_model(name)
            raise
