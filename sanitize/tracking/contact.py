"""Where the store is, whether it answers, and how a new local one is made: bounded in time, whole or not at all."""

from __future__ import annotations

import os
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking import get_tracking_uri
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from sanitize.errors import TrackingError
from sanitize.tracking.faults import CREDENTIALS_HINT, quiet, tracking_errors

ARTIFACT_FOLDER = "mlartifacts"
_SECONDS = 5  # one attempt; with one retry the answer is there within about 12 s
_PROBE = "/api/2.0/mlflow/experiments/search?max_results=1"
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def locate(tracking_uri: str | None) -> str:
    """The tracking URI to use, with the path of an SQLite file made absolute.

    Args:
        tracking_uri: As given; None means what MLflow would use itself: ``mlflow.set_tracking_uri``, then
            ``MLFLOW_TRACKING_URI``, then ``sqlite:///mlflow.db`` in the current folder.
    """
    uri = str(tracking_uri) if tracking_uri else str(get_tracking_uri())
    file = sqlite_file(uri)
    return uri if file is None else sqlite_uri(file) + "".join(uri.partition("?")[1:])


def sqlite_file(uri: str) -> Path | None:
    """The file of an ``sqlite:///`` URI, absolute; None for other stores.

    Example:
        >>> sqlite_file("sqlite:////srv/mlflow.db")
        PosixPath('/srv/mlflow.db')
    """
    if not uri.startswith("sqlite:///"):
        return None
    path = unquote(uri[len("sqlite:///") :].partition("?")[0])
    return Path(path).absolute() if path and path != ":memory:" else None


def sqlite_uri(file: Path) -> str:
    """The ``sqlite:///`` URI of a file; only a percent sign needs quoting, and MLflow takes other quotes literally."""
    return "sqlite:///" + str(file).replace("%", "%25")


def is_server(uri: str) -> bool:
    """Whether the store is an MLflow server, reached over HTTP."""
    return urlsplit(uri).scheme in ("http", "https")


def check_contact(uri: str) -> None:
    """Ask the store for a sign of life; at most about 12 seconds.

    Raises:
        TrackingError: No answer, no permission, or something that is not MLflow answered.
    """
    if is_server(uri):
        _ask_server(uri)
    elif urlsplit(uri).scheme.partition("+")[0] in _PORTS:
        _ask_database(uri)


def create_sqlite(file: Path) -> None:
    """Make a new SQLite store with its artifacts beside it, under `ARTIFACT_FOLDER`.

    It is made under another name first: killed in between, or raced by another process, no half-made store is left.

    Raises:
        TrackingError: The folder is missing, read-only, or the disk is full.
    """
    with tracking_errors(f"could not make the MLflow store {file}"), quiet():
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=file.parent) as folder:
            draft = Path(folder) / file.name
            store = SqlAlchemyStore(sqlite_uri(draft), artifact_location(file, None))  # type: ignore[no-untyped-call]
            store.engine.dispose()
            with suppress(FileExistsError):  # another process was faster; its store is as good
                _publish(draft, file)


def artifact_location(file: Path, experiment: str | None) -> str:
    """URI of the folder beside an SQLite `file` that holds the artifacts of `experiment`; None: of all."""
    folder = file.parent / ARTIFACT_FOLDER
    return (folder / experiment if experiment else folder).as_uri()


def _publish(draft: Path, file: Path) -> None:
    try:
        os.link(draft, file)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        draft.replace(file)


def _ask_server(uri: str) -> None:
    shown = without_password(uri)
    try:
        answer = http_request(  # type: ignore[no-untyped-call]
            get_default_host_creds(uri),  # type: ignore[no-untyped-call]
            _PROBE,
            "GET",
            max_retries=1,
            backoff_factor=1,
            backoff_jitter=0.0,
            timeout=_SECONDS,
            raise_on_status=False,
        )
    except MlflowException as error:
        raise TrackingError(
            f"the MLflow server {shown} is out of reach (no answer within {_SECONDS} s, tried twice). "
            "Check that it runs, and --tracking-uri or MLFLOW_TRACKING_URI."
        ) from error
    if answer.status_code in (401, 403):
        raise TrackingError(
            f"the MLflow server {shown} refused access (HTTP {answer.status_code}); {CREDENTIALS_HINT}."
        )
    if answer.status_code >= 400 or "json" not in answer.headers.get("Content-Type", ""):
        raise TrackingError(
            f"{shown} does not answer like an MLflow server (HTTP {answer.status_code}). Check --tracking-uri."
        )


def _ask_database(uri: str) -> None:
    parts = urlsplit(uri)
    if not parts.hostname:  # a Unix socket or a DSN: the driver knows
        return
    address = (parts.hostname, parts.port or _PORTS[parts.scheme.partition("+")[0]])
    try:
        socket.create_connection(address, timeout=_SECONDS).close()
    except OSError as error:
        raise TrackingError(
            f"the database {without_password(uri)} is out of reach ({error.strerror or error}). "
            "Check that it runs, and --tracking-uri or MLFLOW_TRACKING_URI."
        ) from error


def without_password(uri: str) -> str:
    """The URI without user name and password, fit for a message.

    Example:
        >>> without_password("https://ann:secret@mlflow.example/team")
        'https://mlflow.example/team'
    """
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else uri
