"""Least-privilege accounts for a registry with MLflow's basic-auth.

Run by an administrator; running it again is harmless.

    MLFLOW_TRACKING_USERNAME=admin MLFLOW_TRACKING_PASSWORD=... GATE_PASSWORD=... SUBMITTER_PASSWORD=... \\
        python accounts.py https://registry.example.org

| account   | inbox  | released | experiments of the gate | experiment of the intake |
|-----------|--------|----------|-------------------------|--------------------------|
| submitter | EDIT   | READ     | READ                    | EDIT                     |
| gate      | EDIT   | MANAGE   | MANAGE                  | EDIT                     |

Names that somebody else could make first, and then own, are made here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.server import get_app_client

INBOX, RELEASED = "inbox", "released"
INTAKE = "sanitize-intake"
OF_THE_GATE = ("sanitize", "sanitize-gate", "sanitize-alarms", "sanitize-bindings")


def main(uri: str) -> None:
    """Make users, models and experiments, and grant permissions."""
    os.environ["MLFLOW_TRACKING_URI"] = uri
    users = get_app_client("basic-auth", tracking_uri=uri)
    registry = MlflowClient(uri)
    for name in ("gate", "submitter"):
        existing_is_fine(lambda name=name: users.create_user(name, os.environ[f"{name.upper()}_PASSWORD"]))
    for model in (INBOX, RELEASED):
        existing_is_fine(lambda model=model: registry.create_registered_model(model))
        grant(users, "gate", "registered_model", model, "MANAGE" if model == RELEASED else "EDIT")
    grant(users, "submitter", "registered_model", INBOX, "EDIT")
    grant(users, "submitter", "registered_model", RELEASED, "READ")
    for experiment in (*OF_THE_GATE, INTAKE):
        existing_is_fine(lambda experiment=experiment: registry.create_experiment(experiment))
        number = registry.get_experiment_by_name(experiment).experiment_id
        grant(users, "gate", "experiment", number, "EDIT" if experiment == INTAKE else "MANAGE")
        grant(users, "submitter", "experiment", number, "EDIT" if experiment == INTAKE else "READ")


def grant(users: Any, name: str, kind: str, resource: str, permission: str) -> None:
    """Replace what the user may do with a resource."""
    try:
        users.revoke_user_permission(name, kind, resource)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    users.grant_user_permission(name, kind, resource, permission)
    print(f"{name}: {permission} on {kind} {resource}")


def existing_is_fine(make: Callable[[], object]) -> None:
    """Call what makes something, unless it is there."""
    try:
        make()
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


if __name__ == "__main__":
    main(sys.argv[1])
