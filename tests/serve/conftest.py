"""A gate that listens, beside a real MLflow server that sends."""

from __future__ import annotations

import pytest

from tests.tracking.test_server import server

__all__ = ["server"]


@pytest.fixture(autouse=True)
def _webhooks_to_this_machine(monkeypatch: pytest.MonkeyPatch):
    # By default MLflow sends to public addresses over https only.
    monkeypatch.setenv("MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS", "true")
    monkeypatch.setenv("MLFLOW_WEBHOOK_ALLOWED_SCHEMES", "http,https")
