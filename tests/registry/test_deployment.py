"""What `registry/` deploys, run for real; not run are containers and systemd."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import certifi
import pytest
import requests
from mlflow import MlflowClient

from sanitize import Sanitizer
from sanitize.defenses import CLP
from sanitize.detection.collapse import FeatureCollapse
from sanitize.gate import Gate
from sanitize.inputs import Request
from sanitize.intake import Knowledge, bind_knowledge, take_in
from sanitize.serve.queue import Queue
from sanitize.serve.webhooks import Delivery
from sanitize.tracking import Store, verify
from tests.gate.conftest import LENIENT
from tests.registry.deployment import MLFLOW, Deployment, missing
from tests.registry.test_files import REGISTRY, exec_start

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(missing()),
        reason=f"missing: {', '.join(missing())} (apt-get install postgresql sqlite3 caddy; pip install -e '.[dev]')",
    ),
]


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_"))]:
        monkeypatch.delenv(name)  # clients have no keys of the store
    made = Deployment(tmp_path)
    with made.postgres(), made.object_store(), made.proxy():
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(made.authority))
        yield made


def status(url: str, **options: Any) -> int:
    return requests.get(url, timeout=30, **options).status_code


def objects(deployment: Deployment) -> dict[str, str]:
    """Name -> size of everything in the bucket."""
    lines = deployment.aws("s3", "ls", "--recursive", deployment.bucket).splitlines()
    return {name: size for _, _, size, name in (line.split(maxsplit=3) for line in lines)}


def make_accounts(uri: str) -> None:
    spec = importlib.util.spec_from_file_location("accounts", REGISTRY / "accounts.py")
    accounts = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(accounts)
    accounts.main(uri)


def test_a_registry_is_used_saved_and_restored(deployment, encoders, reference_files, tmp_path, monkeypatch):
    uri, values = deployment.uri, deployment.values
    passwords = {"admin": values["ADMIN_PASSWORD"], "gate": values["GATE_PASSWORD"], "submitter": "of the submitter"}

    def become(name: str) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", passwords[name])

    with deployment.mlflow(MLFLOW["command"]):
        search = "/api/2.0/mlflow/registered-models/search"
        assert status(deployment.inside + search, headers={"Host": "rebound.example.org"}) == 403
        assert status(uri + search) == 401  # allowed, but nobody has signed in
        assert "max-age" in requests.get(f"{uri}/health", timeout=30).headers["Strict-Transport-Security"]
        with pytest.raises(requests.exceptions.SSLError):
            status(f"{uri}/health", verify=certifi.where())  # by an authority that nobody knows
        assert status(uri.replace("https:", "http:")) == 400  # TLS or nothing
        become("admin")
        with monkeypatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", uri)
            patch.setenv("GATE_PASSWORD", passwords["gate"])
            patch.setenv("SUBMITTER_PASSWORD", passwords["submitter"])
            make_accounts(uri)

        become("submitter")
        assert take_in(encoders.backdoored_file, "inbox", Knowledge(), tracking_uri=uri).uri == "models:/inbox/1"
        become("gate")
        known = Knowledge(
            data="digits#0:64",
            probe_data="digits#0:600",
            test_data="digits#1400:",
            triggers=(encoders.trigger_file,),
            arch="small-cnn",
            normalization="half",
            image_size=32,
        )
        bind_knowledge("models:/inbox", known, tracking_uri=uri)
        sanitizer = Sanitizer(CLP(threshold=1.0), workdir=tmp_path / "job", tracking_uri=uri, device="cpu")
        report = sanitizer.run("models:/inbox/1")
        assert report.model_uri == "models:/inbox/2"
        assert verify(Store(uri), "models:/inbox/2") == []

        for file in reference_files[:2]:
            take_in(file, "clean", known, tracking_uri=uri)
        gate = Gate(
            policy=LENIENT,
            detector=FeatureCollapse(starts=1, steps=1),
            references=["models:/clean/1", "models:/clean/2"],
            approve_into="released",
            tracking_uri=deployment.inside,
            device="cpu",
        )
        assert gate.run(Request(model="models:/inbox/2")).outputs["gate"] == "approved"
        assert MlflowClient(uri).get_model_version_by_alias("released", "approved").version == "1"

    stored = objects(deployment)
    assert len(stored) > 20 and not list(tmp_path.rglob("mlartifacts"))
    operators = {
        "DATABASE": deployment.database,
        "BUCKET": deployment.bucket,
        "ENDPOINT": deployment.objects,
        "QUEUE": str(tmp_path / "webhooks.db"),
    }
    queue = Queue(tmp_path / "webhooks.db")
    queue.put(Delivery("1", 0, "model_version_alias.created", {"name": "inbox"}))
    queue.close()
    backup = deployment.tool(REGISTRY / "backup.sh", tmp_path / "backups", **operators)
    with pytest.raises(subprocess.CalledProcessError) as refused:
        deployment.tool(REGISTRY / "restore.sh", backup, **operators)
    assert refused.value.returncode == 2 and "restore into an empty one" in refused.value.stderr

    deployment.sql("drop database mlflow")
    deployment.sql("create database mlflow")
    deployment.aws("s3", "rb", "--force", deployment.bucket)
    deployment.aws("s3", "mb", deployment.bucket)
    (tmp_path / "webhooks.db").unlink()
    deployment.tool(REGISTRY / "restore.sh", backup, **operators)
    assert objects(deployment) == stored
    restored = Queue(tmp_path / "webhooks.db")
    assert restored.counts() == {"waiting": 1}
    restored.close()

    with deployment.mlflow(exec_start(REGISTRY / "systemd" / "mlflow.service")):
        assert verify(Store(uri), "models:/inbox/2") == []
        assert verify(Store(uri), "models:/released@approved") == []
        weights = next(name for name in stored if re.search(r"/models/.*model\.safetensors$", name))
        (tmp_path / "tampered").write_bytes(b"tampered")
        deployment.aws("s3", "cp", str(tmp_path / "tampered"), f"{deployment.bucket}/{weights}")
        assert "verify-weights" in {finding.rule for finding in verify(Store(uri), "models:/inbox/2")}
