"""kill -9 in the middle of a run, then --resume: the same weights, the same verdict, one version, nothing left over."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

pytestmark = pytest.mark.slow


def start(store: str, workdir: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable, "-m", "sanitize", "encoder", "models:/suspect/1", "--method", "bmaiu", "--quiet",
            "--format", "json", "--tracking-uri", store, "--workdir", str(workdir), "--set", "epochs=4", *options,
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> dict:
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode in (0, 1), stderr  # so few epochs may not suffice for a pass
    return json.loads(stdout)


def kill_when(process: subprocess.Popen[str], moment) -> None:
    deadline = time.monotonic() + 200
    while not moment():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def as_they_end(one: subprocess.Popen[str], other: subprocess.Popen[str]) -> tuple[subprocess.Popen[str], ...]:
    """Both, the one that ended first in front: which of two comes first to the work directory is not ours to say."""
    deadline = time.monotonic() + 200
    while one.poll() is None and other.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return (other, one) if one.poll() is None else (one, other)


def digest(workdir: Path) -> str:
    return hashlib.sha256((workdir / "model.safetensors").read_bytes()).hexdigest()


def states(store: str) -> list[str]:
    """How the jobs ended; all their stages have ended."""
    client = MlflowClient(store)
    runs = client.search_runs([client.get_experiment_by_name("sanitize").experiment_id])
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED"}
    return sorted(run.info.status for run in runs if "mlflow.parentRunId" not in run.data.tags)


def started(workdir: Path) -> bool:
    return (workdir / "checkpoints" / "implant.ckpt").exists()


def test_a_killed_run_resumes_to_the_same_bits(suspect, tmp_path):
    """The whole run is started afresh where one was killed, by two processes at once: one of them is refused."""
    client = MlflowClient(suspect)
    afresh = tmp_path / "whole"
    kill_when(start(suspect, afresh, "--set", "batch_size=32"), lambda: started(afresh))
    refused, working = as_they_end(start(suspect, afresh), start(suspect, afresh))
    _, stderr = refused.communicate()
    assert refused.returncode == 2
    assert "another process" in stderr
    whole, expected = finish(working), digest(afresh)
    assert states(suspect) == ["FINISHED", "KILLED"]

    moments = {
        "in the first stage": "checkpoints/implant.ckpt",
        "in the second stage": "checkpoints/unlearn.ckpt",
        "in the export": "staging/package/model.safetensors",
    }
    for number, (name, file) in enumerate(moments.items()):
        workdir = tmp_path / f"killed-{number}"
        aliases = client.get_registered_model("suspect").aliases
        kill_when(start(suspect, workdir), (workdir / file).exists)
        assert len(client.search_model_versions("name='suspect'")) == 2 + number, name
        assert client.get_registered_model("suspect").aliases == aliases, name
        resumed = finish(start(suspect, workdir, "--resume"))
        assert digest(workdir) == expected, name
        assert resumed["verdict"] == whole["verdict"]
        assert resumed["metrics"] == whole["metrics"]
        assert resumed["outputs"]["model_uri"] == f"models:/suspect/{3 + number}"
        assert not [path for path in workdir.rglob("*") if "partial" in path.name or path.is_dir()]
    assert states(suspect) == ["FINISHED"] * 4 + ["KILLED"]
