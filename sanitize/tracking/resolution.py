"""What a URI names in a store; every way to miss is one clear sentence."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow.exceptions import MlflowException

from sanitize.errors import TrackingError
from sanitize.tracking.copying import join_uri
from sanitize.tracking.faults import is_absent
from sanitize.types import did_you_mean

if TYPE_CHECKING:
    from sanitize.tracking.store import Store

FORMS = "models:/NAME/VERSION, models:/NAME@ALIAS, models:/NAME/latest, models:/m-ID or runs:/RUN_ID/PATH"
_MODEL_ID = re.compile(r"(?:^models:/|/models/)(m-[0-9a-f]{32})(?:/|$)")


@dataclass(frozen=True, kw_only=True)
class ModelReference:
    """What a URI names in a store.

    Args:
        uri: As given.
        source_uri: Where the artifacts lie.
        name: Registered model, or None.
        version: Its version, or None.
        run_id: Run that made it, or None.
        model_id: Id of the logged model (``m-...``), or None.
    """

    uri: str
    source_uri: str
    name: str | None = None
    version: str | None = None
    run_id: str | None = None
    model_id: str | None = None

    @property
    def pinned_uri(self) -> str:
        """A URI that keeps its meaning: an alias or ``latest`` replaced by the version it stands for today."""
        return f"models:/{self.name}/{self.version}" if self.name else self.uri


def split_uri(uri: str) -> tuple[str, list[str]]:
    """Scheme and parts of the path.

    Raises:
        TrackingError: It is not a ``models:/`` or ``runs:/`` URI.

    Example:
        >>> split_uri("models:/suspect/1")
        ('models', ['suspect', '1'])
    """
    scheme, _, rest = uri.partition(":")
    parts = [part for part in rest.split("/") if part]
    if scheme not in ("models", "runs") or not rest.startswith("/") or rest.startswith("//") or not parts:
        raise TrackingError(f"{uri!r} is not a URI of this kind: {FORMS}.")
    return scheme, parts


def find(store: Store, uri: str) -> ModelReference:
    """See `Store.resolve`."""
    scheme, parts = split_uri(uri)
    if scheme == "runs":
        return _find_run(store, uri, parts[0], "/".join(parts[1:]))
    name, mark, alias = parts[0].rpartition("@") if "@" in parts[0] else (parts[0], "", "")
    if len(parts) == 1 and not mark and _MODEL_ID.fullmatch(f"models:/{name}"):
        return _find_logged(store, uri, name)
    suffix = parts[1] if len(parts) == 2 else ""
    is_version = suffix.isdigit() or suffix.lower() == "latest"
    if len(parts) > 2 or not name or bool(alias) == bool(suffix) or (suffix and not is_version):
        raise TrackingError(f"{uri!r} names no version. {_choices(store, name)} Forms: {FORMS}.")
    return _find_version(store, uri, name, suffix, alias)


def _find_version(store: Store, uri: str, name: str, suffix: str, alias: str) -> ModelReference:
    try:
        found = _version(store, name, suffix, alias)
    except MlflowException as error:
        if not is_absent(error) and error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        found = None
    if found is None:
        what = f"alias {alias!r}" if alias else f"version {suffix}" if suffix.isdigit() else "version"
        raise TrackingError(f"models:/{name} has no {what}. {_choices(store, name)}")
    if found.status not in ("READY", None):
        why = found.status_message or "no reason given"
        raise TrackingError(f"{uri} is not usable: its status is {found.status}, {why}.")
    source = str(store.client.get_model_version_download_uri(name, str(found.version)))
    match = _MODEL_ID.search(str(found.source)) or _MODEL_ID.search(source)
    if source.startswith("runs:/") or _MODEL_ID.match(source):
        source = find(store, source).source_uri
    return ModelReference(
        uri=uri,
        name=name,
        version=str(found.version),
        source_uri=source,
        run_id=found.run_id or None,
        model_id=match.group(1) if match else None,
    )


def _version(store: Store, name: str, suffix: str, alias: str) -> Any:
    if alias:
        return store.client.get_model_version_by_alias(name, alias)
    if suffix.isdigit():
        return store.client.get_model_version(name, suffix)
    return next(reversed(store.versions(name)), None)


def _find_logged(store: Store, uri: str, model_id: str) -> ModelReference:
    try:
        model = store.client.get_logged_model(model_id)
    except MlflowException as error:
        if is_absent(error):
            raise TrackingError(f"there is no logged model {model_id} in {store.shown}.") from error
        raise
    run_id = model.source_run_id or None
    return ModelReference(uri=uri, source_uri=model.artifact_location, run_id=run_id, model_id=model_id)


def _find_run(store: Store, uri: str, run_id: str, path: str) -> ModelReference:
    if not path:
        raise TrackingError(f"{uri!r} names a run but no artifact in it. Form: runs:/RUN_ID/PATH.")
    client = store.client
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if is_absent(error) or error.error_code == "INVALID_PARAMETER_VALUE":
            raise TrackingError(f"there is no run {run_id} in {store.shown}.") from error
        raise
    parent, _, last = path.rpartition("/")
    if last in (info.path.rpartition("/")[2] for info in client.list_artifacts(run_id, parent or None)):
        return ModelReference(uri=uri, source_uri=join_uri(run.info.artifact_uri, path), run_id=run_id)
    # Since MLflow 3 a model logged as PATH lies outside of its run.
    models = client.search_logged_models([run.info.experiment_id], filter_string=f"source_run_id = '{run_id}'")
    named = [model for model in models if model.name == path]
    if not named:
        there = [info.path for info in client.list_artifacts(run_id)] + [model.name for model in models]
        raise TrackingError(f"run {run_id} has no artifact {path!r}. It has: {', '.join(there) or 'nothing'}.")
    latest = max(named, key=lambda model: model.creation_timestamp)
    return ModelReference(uri=uri, source_uri=latest.artifact_location, run_id=run_id, model_id=latest.model_id)


def _choices(store: Store, name: str) -> str:
    """A sentence that names the versions and aliases that there are, or the models."""
    try:
        model = store.client.get_registered_model(name)
    except MlflowException:
        known = [model.name for model in store.client.search_registered_models(max_results=100)]
        return f"There is no model {name!r}. {did_you_mean(name, known)}" if known else "The registry is empty."
    numbers = ", ".join(str(version.version) for version in store.versions(name)) or "none"
    aliases = ", ".join(sorted(model.aliases)) or "none"
    return f"Versions of {name}: {numbers}; aliases: {aliases}."
