"""The whole way through a real MLflow server."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import mlflow
import numpy as np
import pytest
import torch

from sanitize.data.images import ImageSet
from sanitize.errors import TrackingError
from sanitize.tracking import Binding, RunRecorder, Store, bind, binding_of, register_data, register_model_file
from tests.tracking.cleaned_model import describe

from sanitize.tracking import release, verify  # isort: skip

pytestmark = pytest.mark.slow


@pytest.fixture
def server(store_uri, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    stores = ["--workers", "1", "--backend-store-uri", store_uri]
    if "TEST_SERVER_APP" in os.environ:
        stores += ["--app-name", os.environ["TEST_SERVER_APP"]]
    stores += ["--artifacts-destination", str(tmp_path / "served")]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    file = tmp_path / "server.log"
    with file.open("w") as log:
        process = subprocess.Popen(
            command + stores, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=tmp_path
        )
    try:
        if not answers(f"http://127.0.0.1:{port}/health", process):
            pytest.fail(f"the MLflow server did not start: {file.read_text()[-2000:]}")
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def answers(url, process):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return True
        except OSError:
            time.sleep(0.2)
    return False


def test_the_whole_way(server, suspect_file, cleaned, tmp_path):
    store = Store(server)
    suspect = register_model_file(store, suspect_file, "suspect")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(b"1")
    (tmp_path / "images" / "2.png").write_bytes(b"2")
    register_data(store, tmp_path / "images", "scraped")
    bind(store, "suspect", Binding(data="models:/scraped/1", image_size=8, triggers=[{"target": 0}]))
    assert binding_of(store, "suspect").trigger_paths[0].is_file()
    assert store.download(suspect, tmp_path / "quarantine").read_bytes() == suspect_file.read_bytes()
    assert (store.artifact("models:/scraped/1", tmp_path / "data") / "2.png").read_bytes() == b"2"
    assert store.resolve(f"runs:/{suspect.run_id}/model/suspect.pth").run_id == suspect.run_id
    for uri in ("models:/other/1", "models:/suspect/9", "models:/suspect@x", "models:/m-" + "0" * 32, "runs:/0/a"):
        with pytest.raises(TrackingError):
            store.resolve(uri)

    with RunRecorder(store) as recorder:
        recorder.input(ImageSet(images=torch.zeros(2, 3, 8, 8, dtype=torch.uint8), uri="models:/scraped/1"), "clean")
        with recorder.stage("unlearn"):
            for step in range(1200):
                recorder.metrics("unlearn", {"loss": step}, step)
        released = release(
            store,
            recorder,
            reference=suspect,
            package=cleaned.package,
            onnx=cleaned.onnx,
            method="bmaiu",
            describe=describe,
        )

    assert (released.model_uri, released.alias) == ("models:/suspect/2", "sanitized")
    assert store.resolve("models:/suspect@sanitized").model_id == released.model_id
    assert recorder.run_url.startswith(f"{server}/#/experiments/")
    assert verify(store, "models:/suspect/2") == []
    assert {metric.key for metric in store.client.get_logged_model(released.model_id).metrics} == {
        "after/clean_accuracy"
    }
    (weights,) = (tmp_path / "served").rglob("artifacts/model.safetensors")
    weights.write_bytes(b"tampered")
    assert "verify-weights" in {finding.rule for finding in verify(store, "models:/suspect/2")}

    mlflow.set_tracking_uri(server)
    try:
        model = mlflow.pyfunc.load_model("models:/suspect/2")
        onnx = store.artifact(released.onnx_uri, tmp_path / "onnx")
    finally:
        mlflow.set_tracking_uri(None)
    images = np.ones((5, 3, 8, 8), dtype=np.float32)
    np.testing.assert_allclose(model.predict(images)["features"], np.ones((5, 3)), rtol=1e-6)
    assert onnx.read_bytes() == cleaned.onnx.read_bytes()
