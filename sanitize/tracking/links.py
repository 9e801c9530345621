"""Where a person sees it: pages of MLflow's UI, and the command that starts the UI for a local store."""

from __future__ import annotations

import shlex
from urllib.parse import quote

from sanitize.tracking.contact import without_password
from sanitize.tracking.store import Store

LOCAL_UI = "http://127.0.0.1:5000"
_MODE = "?workflowType=machine_learning"  # else the UI may open in its GenAI mode, which hides models and metrics


def run_url(store: Store, experiment_id: str, run_id: str) -> str | None:
    """Page of a run; None for a store without a server."""
    return base_url(store) + _run_page(experiment_id, run_id) if store.is_server else None


def base_url(store: Store) -> str:
    """Address of the UI: the server's, or where `ui_command` will start it."""
    return without_password(store.tracking_uri).rstrip("/") if store.is_server else LOCAL_UI


def ui_command(store: Store) -> str | None:
    """Command that starts the UI on a local store; None where a server runs already.

    Example:
        >>> ui_command(Store("sqlite:////srv/mlflow.db"))
        'mlflow ui --backend-store-uri sqlite:////srv/mlflow.db'
    """
    if store.is_server:
        return None
    return f"mlflow ui --backend-store-uri {shlex.quote(store.tracking_uri)}"


def deep_links(
    store: Store,
    *,
    experiment_id: str | None = None,
    run_id: str | None = None,
    model_id: str | None = None,
    model_uri: str | None = None,
) -> dict[str, str]:
    """Addresses of pages in MLflow's UI, which opens in a mode without a menu for models.

    Args:
        store: Where it all is.
        experiment_id: Of the run and the logged model.
        run_id: Gives the page ``run``.
        model_id: Of a logged model (``m-...``); gives the page ``logged_model``.
        model_uri: ``models:/NAME/VERSION``; gives the pages ``model`` and ``version``.

    Example:
        >>> deep_links(Store("http://mlflow.example:5000"), model_uri="models:/suspect/2")["version"]
        'http://mlflow.example:5000/#/models/suspect/versions/2?workflowType=machine_learning'
    """
    pages: dict[str, str] = {}
    if experiment_id is not None and run_id is not None:
        pages["run"] = _run_page(experiment_id, run_id)
    if experiment_id is not None and model_id is not None:
        pages["logged_model"] = f"/#/experiments/{experiment_id}/models/{model_id}{_MODE}"
    if model_uri is not None:
        name, _, version = model_uri.removeprefix("models:/").rpartition("/")
        pages["model"] = f"/#/models/{quote(name, safe='')}{_MODE}"
        pages["version"] = f"/#/models/{quote(name, safe='')}/versions/{version}{_MODE}"
    return {name: base_url(store) + page for name, page in pages.items()}


def _run_page(experiment_id: str, run_id: str) -> str:
    return f"/#/experiments/{experiment_id}/runs/{run_id}{_MODE}"
