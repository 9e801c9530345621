"""MLflow's, the network's and the disk's complaints, as one `TrackingError` in one sentence."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import requests
import sqlalchemy.exc
from mlflow.environment_variables import MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR, MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT
from mlflow.exceptions import MlflowException

from sanitize.errors import TrackingError

_REFUSED = {"PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"}
_ABSENT = {"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"}
_TAKEN = {"RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"}
_DATABASE = "mlflow.store.db.utils"
_CHATTY = (
    "alembic",
    "alembic.runtime.migration",
    _DATABASE,
    "mlflow.store.model_registry.abstract_store",
)
_LENGTH = 400  # characters of a message that is not ours
CREDENTIALS_HINT = "set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"


@contextmanager
def tracking_errors(doing: str) -> Iterator[None]:
    """Turn what goes wrong inside into a `TrackingError` that says what was being done.

    Args:
        doing: Start of the sentence, for example ``"could not register models:/suspect"``.

    Raises:
        TrackingError: MLflow, the server, the database or the file system refused.

    Example:
        >>> with tracking_errors("could not register models:/suspect"):
        ...     raise OSError(28, "No space left on device")
        Traceback (most recent call last):
        ...
        sanitize.errors.TrackingError: could not register models:/suspect: No space left on device.
    """
    database = logging.getLogger(_DATABASE)
    level = database.level
    database.setLevel(logging.CRITICAL)  # it logs the traceback of what is raised here in one sentence
    try:
        yield
    except MlflowException as error:
        raise TrackingError(f"{doing}: {reason(error)}.") from error
    except requests.RequestException as error:
        raise TrackingError(f"{doing}: the server did not answer as expected ({_first_line(error)}).") from error
    except sqlalchemy.exc.SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        raise TrackingError(f"{doing}: the database refused ({_first_line(cause)}).") from error
    except OSError as error:
        raise TrackingError(f"{doing}: {error.strerror or error}.") from error
    finally:
        database.setLevel(level)


def is_absent(error: MlflowException) -> bool:
    """Whether MLflow says that something does not exist."""
    return error.error_code in _ABSENT


def is_taken(error: MlflowException) -> bool:
    """Whether MLflow says that something exists already."""
    return error.error_code in _TAKEN


def reason(error: MlflowException) -> str:
    """Why MLflow refused, in a few words and without a full stop."""
    if error.error_code in _REFUSED or getattr(error, "get_http_status_code", lambda: 0)() in (401, 403):
        return f"the server refused access; {CREDENTIALS_HINT}"
    return _first_line(error)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep MLflow's own lines out of the output: URLs of runs, progress of artifacts, migrations of a new database."""
    variables: tuple[tuple[Any, bool], ...] = (
        (MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT, True),
        (MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR, False),
    )
    before = [variable.get_raw() if variable.is_set() else None for variable, _ in variables]
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    try:
        for variable, value in variables:
            variable.set(value)
        for logger in loggers:
            logger.setLevel(max(logger.level, logging.WARNING))
        yield
    finally:
        for (variable, _), old in zip(variables, before, strict=True):
            variable.unset() if old is None else variable.set(old)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    line = text.splitlines()[0].rstrip(". ")
    return line if len(line) <= _LENGTH else line[:_LENGTH].rpartition(" ")[0] + " ..."
