"""The server goes away in the middle and comes back; the disk is full; the store is read-only."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from sanitize.tracking import RunRecorder, Store, verify
from tests.tracking.test_server import answers

pytestmark = pytest.mark.slow
AWAY = 60.0
ENCODER = ["encoder", "models:/suspect/1", "--method", "clp", "--quiet"]


class Server:
    """An MLflow server on one port, which can be killed and started again."""

    def __init__(self, store: str, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", store, "--artifacts-destination", str(folder / "served"),
        ]  # fmt: skip
        self.log = folder / "server.log"

    def start(self) -> None:
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=self.log.parent
            )
        assert answers(f"{self.uri}/health", self.process), self.log.read_text()[-2000:]

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)


def test_a_server_that_is_away_for_some_seconds_loses_nothing(store_uri, tmp_path):
    server = Server(store_uri, tmp_path)
    server.start()
    steps = 60
    try:
        with RunRecorder(Store(server.uri), name="outage") as recorder:
            with recorder.stage("unlearn"):
                for step in range(steps):
                    if step == 15:
                        server.kill()
                        back = threading.Timer(3, server.start)
                        back.start()
                    recorder.metrics("unlearn", {"loss": 1 / (step + 1)}, step)
                    time.sleep(0.1)
            recorder.text("notes.txt", "written after the outage")
        back.join()
        client = MlflowClient(server.uri)
        history = client.get_metric_history(recorder.run_id, "unlearn/loss")
        assert sorted(point.step for point in history) == list(range(steps))
        (stage,) = client.search_runs([recorder.experiment_id], f"tags.`mlflow.parentRunId` = '{recorder.run_id}'")
        assert len(client.get_metric_history(stage.info.run_id, "loss")) == steps
        assert {client.get_run(recorder.run_id).info.status, stage.info.status} == {"FINISHED"}
        assert [file.path for file in client.list_artifacts(recorder.run_id)] == ["notes.txt"]
    finally:
        server.kill()


def test_a_job_goes_on_when_the_server_was_away_for_a_minute(suspect, tmp_path):
    """From the middle of the training; nothing of the run, the artifacts or the version is missing."""
    server = Server(suspect, tmp_path)
    server.start()
    checkpoint = tmp_path / "job" / "checkpoints" / "unlearn.ckpt"
    job = subprocess.Popen(
        [
            sys.executable, "-m", "sanitize", "encoder", "models:/suspect/1", "--method", "bmaiu", "--set", "epochs=4",
            "--tracking-uri", server.uri, "--workdir", str(tmp_path / "job"), "--quiet", "--format", "json",
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        while not checkpoint.exists():
            assert job.poll() is None, job.communicate()
            time.sleep(0.01)
        server.kill()
        time.sleep(AWAY)
        assert job.poll() is None, job.communicate()
        server.start()
        printed, problems = job.communicate(timeout=300)
        assert job.returncode in (0, 1), problems
        report = json.loads(printed)
        assert report["outputs"]["model_uri"] == "models:/suspect/2"
        assert verify(Store(server.uri), "models:/suspect/2") == []
        client = MlflowClient(server.uri)
        run = report["outputs"]["run_id"]
        for metric, epochs in (("implant/loss", 4), ("unlearn/loss", 4)):
            assert sorted(point.step for point in client.get_metric_history(run, metric)) == list(range(epochs))
        assert {"report.json", "report.html"} <= {file.path for file in client.list_artifacts(run)}
        assert set(states(suspect)) == {"FINISHED"}
    finally:
        server.kill()
        job.kill()


def namespaces() -> bool:
    return (
        shutil.which("unshare") is not None
        and subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode
        == 0
    )


needs_namespaces = pytest.mark.skipif(not namespaces(), reason="file systems cannot be mounted in a namespace here")


def mounted(mount: str, *arguments: str, store: str) -> subprocess.CompletedProcess[str]:
    """`sanitize` in a mount namespace of its own."""
    script = f'{mount} && exec "$0" -m sanitize "$@"'
    command = ["unshare", "-rm", "sh", "-c", script, sys.executable, *arguments, "--tracking-uri", store]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def states(store: str) -> list[str]:
    client = MlflowClient(store)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return [run.info.status for run in client.search_runs(experiments)]


def check_refused(done: subprocess.CompletedProcess[str], store: str, reason: str) -> None:
    assert done.returncode == 2, done.stderr
    assert reason in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "internal error" not in done.stderr
    assert [v.version for v in MlflowClient(store).search_model_versions("name = 'suspect'")] in (["1"], [1])
    assert MlflowClient(store).get_registered_model("suspect").aliases == {}
    assert "RUNNING" not in states(store)


@needs_namespaces
def test_a_work_directory_on_a_full_disk(suspect, tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    mount = f"mount -t tmpfs -o size=40k none {place}"
    done = mounted(mount, *ENCODER, "--workdir", str(place / "job"), store=suspect)
    check_refused(done, suspect, "No space left on device")


@needs_namespaces
def test_a_store_that_is_read_only(suspect, tmp_path):
    place = Path(suspect.removeprefix("sqlite:///")).parent
    (tmp_path / "elsewhere").mkdir()
    mount = f"mount --bind {place} {place} && mount -o remount,bind,ro {place}"
    work = Path("/dev/shm") / f"sanitize-{os.getpid()}"  # outside of the store
    try:
        done = mounted(mount, *ENCODER, "--workdir", str(work), store=suspect)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    check_refused(done, suspect, "readonly database")
