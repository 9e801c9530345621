"""The accounts against a real MLflow server with basic-auth: who may do what."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from sanitize.errors import TrackingError
from sanitize.gate import Decision, Gate
from sanitize.inputs import Request
from sanitize.intake import Knowledge, bind_knowledge, take_in
from tests.gate.conftest import KNOWN
from tests.registry.test_files import REGISTRY

pytest.importorskip("flask_wtf", reason="MLflow's basic-auth needs it: pip install 'mlflow[auth]'")
from tests.tracking.test_server import server

pytestmark = pytest.mark.slow
__all__ = ["server"]
PASSWORDS = {name: f"password of the {name}" for name in ("admin", "gate", "submitter")}


@pytest.fixture(autouse=True)
def _basic_auth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "basic_auth.ini").write_text(
        "[mlflow]\ndefault_permission = READ\n"
        f"database_uri = sqlite:///{tmp_path}/users.db\nadmin_username = admin\nauth_cache_ttl_seconds = 60\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(tmp_path / "basic_auth.ini"))
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", PASSWORDS["admin"])
    monkeypatch.setenv("MLFLOW_FLASK_SERVER_SECRET_KEY", "of this test")
    monkeypatch.setenv("TEST_SERVER_APP", "basic-auth")


def test_submitters_cannot_approve(server, encoders, monkeypatch):
    def become(name: str) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORDS[name])

    become("admin")
    accounts = os.environ | {f"{name.upper()}_PASSWORD": PASSWORDS[name] for name in ("gate", "submitter")}
    for _ in range(2):  # the second time changes nothing
        subprocess.run(
            [sys.executable, REGISTRY / "accounts.py", server], env=accounts, check=True, capture_output=True
        )

    become("submitter")
    client = MlflowClient(server)
    assert take_in(encoders.clean_file, "inbox", Knowledge(), tracking_uri=server).uri == "models:/inbox/1"
    client.set_registered_model_alias("inbox", "candidate", "1")
    with pytest.raises(TrackingError, match="refused access"):
        bind_knowledge("models:/inbox", KNOWN, tracking_uri=server)
    gate_experiment = client.get_experiment_by_name("sanitize-gate").experiment_id
    for forbidden in (
        lambda: client.copy_model_version("models:/inbox/1", "released"),
        lambda: client.set_registered_model_alias("released", "approved", "1"),
        lambda: client.create_run(gate_experiment),
        lambda: client.create_webhook("mine", "https://example.org/", ["model_version.created"]),
    ):
        with pytest.raises(MlflowException, match=r"403|Permission denied"):
            forbidden()

    become("gate")
    bind_knowledge("models:/inbox", KNOWN, tracking_uri=server)
    report = Gate(approve_into="released", tracking_uri=server, device="cpu").run(Request(model="models:/inbox/1"))
    assert report.outputs["gate"] == Decision.UNDECIDED  # without references nothing is settled
    assert client.get_model_version("inbox", "1").tags["sanitize.gate"] == "undecided"
    client.set_registered_model_alias("inbox", "approved", "1")
    client.copy_model_version("models:/inbox/1", "released")
    client.set_registered_model_alias("released", "approved", "1")
