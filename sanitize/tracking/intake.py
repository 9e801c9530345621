"""Taking untrusted files into the registry as they are: byte for byte, never loaded."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from sanitize.errors import TrackingError, UnsafeArtifactError
from sanitize.tracking.copying import join_uri
from sanitize.tracking.digests import files_in, sha256_of
from sanitize.tracking.faults import is_absent, is_taken, quiet, tracking_errors
from sanitize.tracking.store import KIND_TAG, ModelReference, Store

EXPERIMENT = "sanitize-intake"
ArtifactKind = Literal["model", "data"]


def register_model_file(store: Store, path: Path, name: str) -> ModelReference:
    """Register a model file, or the folder of an MLflow model, as the next version of ``models:/name``.

    Args:
        store: Where to.
        path: File or folder; stored as it is, never opened as a model.
        name: Registered model; made when missing.

    Returns:
        The new version.

    Raises:
        TrackingError: The file is missing, the name belongs to a data set, or the store refused. No version is left.
        UnsafeArtifactError: The folder holds links, or something that is neither file nor folder.
    """
    return _register(store, path, name, "model")


def register_data(store: Store, path: Path, name: str) -> ModelReference:
    """Register a data set (Parquet file or folder, image folder, ``.npz``) as the next version of ``models:/name``.

    Args, returns and raises as `register_model_file`; the name must not belong to a model.
    """
    return _register(store, path, name, "data")


def _register(store: Store, path: Path, name: str, kind: ArtifactKind) -> ModelReference:
    check_name(name)
    _check_files(path)
    tags = {KIND_TAG: kind, "sanitize.file": path.absolute().name, "sanitize.sha256": sha256_of(path)}
    check_kind(store, name, kind)
    with intake_run(store, EXPERIMENT, f"intake of {name}", tags) as run:
        store.upload(run.info.run_id, path, kind)
        _check_sizes(store, run.info.run_id, path, kind)
        source = join_uri(run.info.artifact_uri, kind)
        with tracking_errors(f"could not register models:/{name}"), quiet():
            made = ensure_model(store, name, kind)
            try:
                version = store.client.create_model_version(
                    name,
                    source,
                    run.info.run_id,
                    tags=tags,
                    description=f"Taken in as it is from `{path.name}`.",
                )
            except BaseException:
                if made:
                    with suppress(Exception):
                        store.client.delete_registered_model(name)
                raise
    return store.resolve(f"models:/{name}/{version.version}")


def check_name(name: str) -> None:
    """Refuse names that would not work inside a URI.

    Raises:
        TrackingError: The name is empty or has a character that URIs use.
    """
    if (
        not name
        or name != name.strip()
        or any(character in "/:@#?%\\'\"" or not character.isprintable() for character in name)
    ):
        raise TrackingError(
            f"{name!r} cannot be the name of a model: use letters, digits, '-', '_', '.' and spaces inside."
        )


def check_kind(store: Store, name: str, kind: ArtifactKind) -> None:
    """Refuse to mix models and data sets under one name.

    Raises:
        TrackingError: ``models:/name`` holds the other kind.
    """
    if not store.exists:  # asking would make it
        return
    with tracking_errors(f"could not look up models:/{name}"):
        try:
            model = store.client.get_registered_model(name)
        except MlflowException as error:
            if is_absent(error):
                return
            raise
        found = model.tags.get(KIND_TAG) or ("model" if store.versions(name) else kind)
    if found != kind:
        words = {"model": "a model", "data": "a data set"}
        raise TrackingError(f"models:/{name} is {words[found]}; choose another --name for {words[kind]}.")


def ensure_model(store: Store, name: str, kind: ArtifactKind) -> bool:
    """Make the registered model when it is missing; whether it was made now."""
    try:
        store.client.create_registered_model(name, tags={KIND_TAG: kind})
    except MlflowException as error:
        if is_taken(error):
            return False
        raise
    return True


@contextmanager
def intake_run(store: Store, experiment: str, name: str, tags: dict[str, str]) -> Iterator[Run]:
    """A run that only stores files: FINISHED when all went well, FAILED otherwise.

    Raises:
        TrackingError: The store refused.
    """
    with tracking_errors(f"could not start a run in {experiment}"):
        run = store.client.create_run(store.experiment(experiment), tags=origin_tags() | tags, run_name=name)
    try:
        yield run
        terminate(store, run.info.run_id, "FINISHED")
    except BaseException:
        with suppress(Exception):
            terminate(store, run.info.run_id, "FAILED")
        raise


def terminate(store: Store, run_id: str, status: str) -> None:
    """End a run, without MLflow's line on stdout."""
    with tracking_errors(f"could not end run {run_id}"), quiet():
        store.client.set_terminated(run_id, status)


def origin_tags() -> dict[str, Any]:
    """Who and what made a run, as MLflow's UI shows it."""
    tags = {"mlflow.source.name": "sanitize", "mlflow.source.type": "LOCAL"}
    with suppress(Exception):  # a user without a name: containers, bare user ids
        tags["mlflow.user"] = getpass.getuser()
    return tags


def _check_files(path: Path) -> None:
    if not path.exists():
        raise TrackingError(f"there is no file or folder {path} to take in.")
    if path.is_file():
        return
    for item in path.rglob("*"):
        if item.is_symlink() or not (item.is_file() or item.is_dir()):
            raise UnsafeArtifactError(
                f"{item} is a link or a special file, which could lead out of {path}. Remove it first."
            )
    if not files_in(path):
        raise TrackingError(f"the folder {path} has no files to take in.")


def _check_sizes(store: Store, run_id: str, path: Path, folder: str) -> None:
    root = path if path.is_dir() else path.parent
    expected = files_in(path) if path.is_dir() else [path.name]
    stored: dict[str, int | None] = {}
    with tracking_errors(f"could not list what was stored in run {run_id}"):
        folders = [folder]
        while folders:
            for info in store.client.list_artifacts(run_id, folders.pop()):
                if info.is_dir:
                    folders.append(info.path)
                else:
                    stored[info.path.removeprefix(f"{folder}/")] = info.file_size
    for name in expected:
        if name not in stored or stored[name] not in (None, (root / name).stat().st_size):
            raise TrackingError(f"{name} did not arrive completely in run {run_id}. Nothing was registered; try again.")
