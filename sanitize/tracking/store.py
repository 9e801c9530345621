"""One MLflow store: a client of its own, and copies into quarantine. Nothing is loaded here."""

from __future__ import annotations

import re
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from sanitize.errors import TrackingError
from sanitize.tracking.contact import (
    artifact_location,
    check_contact,
    create_sqlite,
    is_server,
    locate,
    sqlite_file,
    without_password,
)
from sanitize.tracking.copying import copy_plain, join_uri, local_path
from sanitize.tracking.faults import quiet, tracking_errors
from sanitize.tracking.resolution import ModelReference, find, split_uri

__all__ = ["KIND_TAG", "ModelReference", "Store", "literal"]

KIND_TAG = "sanitize.kind"


def literal(text: str) -> str:
    """A string in MLflow's search language, which has no escapes.

    Example:
        >>> print(literal("suspect"), literal("it's"))
        'suspect' "it's"
    """
    return f'"{text}"' if "'" in text else f"'{text}'"


class Store:
    """An MLflow tracking store with its registry, reached through a client of its own: MLflow's globals stay untouched.

    Args:
        tracking_uri: Server or database; None means what MLflow itself would use.
        registry_uri: Where the registry is elsewhere; None means with the runs.

    Nothing is contacted before the first use. A new SQLite store keeps its artifacts beside it, in ``mlartifacts``.
    """

    def __init__(self, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        self.tracking_uri = locate(tracking_uri)
        self.registry_uri = registry_uri

    def __repr__(self) -> str:
        return f"Store({self.shown!r})"

    @property
    def shown(self) -> str:
        """The tracking URI, fit for a message: without user name and password."""
        return without_password(self.tracking_uri)

    @property
    def exists(self) -> bool:
        """Whether there is a store already; always true for those that are not an SQLite file."""
        file = sqlite_file(self.tracking_uri)
        return file is None or file.exists()

    @property
    def is_server(self) -> bool:
        """Whether an MLflow server is between us and the store."""
        return is_server(self.tracking_uri)

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow's client, after a bounded check that the store answers; a missing SQLite store is made.

        Raises:
            TrackingError: Out of reach, access refused, or not an MLflow store.
        """
        file = sqlite_file(self.tracking_uri)
        if file is not None and not file.exists():
            create_sqlite(file)
        check_contact(self.tracking_uri)
        with tracking_errors(f"could not open the MLflow store {self.shown}"), quiet():
            client = MlflowClient(self.tracking_uri, self.registry_uri)
            client.search_experiments(max_results=1)
        return client

    def experiment(self, name: str) -> str:
        """Id of the experiment, which is made when missing.

        Raises:
            TrackingError: It was deleted, or the store refused.
        """
        with tracking_errors(f"could not open the experiment {name!r}"):
            found = self.client.get_experiment_by_name(name)
            if found is None:
                file = sqlite_file(self.tracking_uri)
                location = artifact_location(file, re.sub(r"[^\w.-]", "_", name)) if file else None
                # The tag opens the UI in its machine-learning mode, with metrics and a models tab.
                tags = {"mlflow.experimentKind": "custom_model_development"}
                try:
                    return str(self.client.create_experiment(name, artifact_location=location, tags=tags))
                except MlflowException:
                    found = self.client.get_experiment_by_name(name)  # another process may have been faster
                    if found is None:
                        raise
        if found.lifecycle_stage == "deleted":
            raise TrackingError(
                f"the experiment {name!r} was deleted; bring it back with "
                f"`mlflow experiments restore -x {found.experiment_id}`, or choose another name."
            )
        return str(found.experiment_id)

    def resolve(self, uri: str) -> ModelReference:
        """Find what `uri` names.

        Args:
            uri: ``models:/NAME/VERSION``, ``models:/NAME@ALIAS``, ``models:/NAME/latest``, ``models:/m-ID`` or
                ``runs:/RUN_ID/PATH``.

        Raises:
            TrackingError: The form is wrong, or there is no such model, version, alias, run or artifact.
        """
        split_uri(uri)
        if not self.exists:
            raise TrackingError(
                f"{uri} cannot be found: there is no MLflow store at {self.shown}. Name another one with "
                "--tracking-uri or MLFLOW_TRACKING_URI, or fill this one with `sanitize intake`."
            )
        with tracking_errors(f"could not find {uri}"):
            return find(self, uri)

    def versions(self, name: str) -> list[Any]:
        """All versions of a registered model, oldest first; empty when there is none."""
        found: list[Any] = []
        token = None
        while True:
            page = self.client.search_model_versions(f"name = {literal(name)}", max_results=1000, page_token=token)
            found += page
            token = page.token
            if not token:
                return sorted(found, key=lambda version: int(version.version))

    def download(self, reference: ModelReference, destination: Path) -> Path:
        """Copy an artifact into `destination`; the live store is never handed out.

        From a local store links are copied as links, so that the quarantine sees and refuses them.

        Args:
            reference: From `resolve`.
            destination: An empty or new folder.

        Returns:
            `destination`; or the file in it, where the artifact is a single file.

        Raises:
            TrackingError: The artifact is missing, or could not be copied completely.
        """
        self._fetch(reference.source_uri, destination, reference.uri)
        content = list(destination.iterdir())
        if not content:
            raise TrackingError(
                f"{reference.uri} is registered, but its artifacts are missing from {reference.source_uri}."
            )
        alone = content[0] if len(content) == 1 else None
        return alone if alone is not None and alone.is_file() and not alone.is_symlink() else destination

    def artifact(self, uri: str, destination: Path) -> Path:
        """Copy the data that `uri` names into `destination`; see `resolve` and `download`."""
        return self.download(self.resolve(uri), destination)

    def upload(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """Store a file, or the content of a folder, in a run.

        Raises:
            TrackingError: The store refused, or the disk is full.
        """
        with tracking_errors(f"could not store {path.name} in run {run_id}"), quiet():
            if path.is_dir():
                self.client.log_artifacts(run_id, str(path), folder)
            else:
                self.client.log_artifact(run_id, str(path), folder)

    def fetch_run_file(self, run_id: str, name: str, destination: Path) -> Path:
        """Copy one artifact file of a run; the copied file.

        Raises:
            TrackingError: The run or the file is missing.
        """
        with tracking_errors(f"could not read {name} of run {run_id}"):
            root = self.client.get_run(run_id).info.artifact_uri
        self._fetch(join_uri(root, name), destination, f"runs:/{run_id}/{name}")
        return destination / Path(name).name

    def _fetch(self, source: str, destination: Path, shown: str) -> None:
        with tracking_errors(f"could not copy the artifacts of {shown}"), quiet():
            destination.mkdir(parents=True, exist_ok=True)
            local = local_path(source)
            if local is not None:
                copy_plain(local, destination)
                return
            parent, _, last = source.rstrip("/").rpartition("/")
            draft = destination / ".part"
            draft.mkdir()
            repository = get_artifact_repository(parent, tracking_uri=self.tracking_uri)
            copied = Path(repository.download_artifacts(last, dst_path=str(draft)))  # type: ignore[no-untyped-call]
            for item in list(copied.iterdir()) if copied.is_dir() else [copied]:
                item.rename(destination / item.name)
            shutil.rmtree(draft)
