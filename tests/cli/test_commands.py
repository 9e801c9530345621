"""The real command: exit codes, stdout, stderr, files; one paragraph for every kind of bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sanitize.types import Report

BIND = ["--arch", "small-cnn", "--normalization", "half", "--image-size", "32"]
DATA = ["--data", "digits#0:420", "--probe-data", "digits#0:600", "--test-data", "digits#1400:"]


def sanitize(*arguments: str | Path, folder: Path, store: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "80", "NO_COLOR": "1"}
    if store:
        environment["MLFLOW_TRACKING_URI"] = store
    return subprocess.run(
        [sys.executable, "-m", "sanitize", *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def is_one_clear_paragraph(result: subprocess.CompletedProcess[str]) -> bool:
    return (
        result.returncode == 2
        and result.stdout == ""
        and result.stderr.startswith("error: ")
        and "Traceback" not in result.stderr
        and len(result.stderr.strip().splitlines()) == 1
    )


def versions(store: str, name: str = "suspect") -> list[str]:
    from mlflow import MlflowClient

    return [str(version.version) for version in MlflowClient(store).search_model_versions(f"name='{name}'")]


def running(store: str) -> list[str]:
    from mlflow import MlflowClient

    client = MlflowClient(store)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return [run.info.run_id for run in client.search_runs(experiments) if run.info.status == "RUNNING"]


@pytest.mark.slow
def test_the_main_job_with_every_output(suspect, tmp_path):
    result = sanitize(
        "encoder", "models:/suspect/1", "--method", "bmaiu", "--format", "json", "--workdir", "job",
        *(part for suffix in ("json", "sarif", "xml", "md", "html", "txt") for part in ("--output", f"out.{suffix}")),
        folder=tmp_path, store=suspect,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    report = Report.from_dict(json.loads(result.stdout))
    assert report.verdict == "pass"
    assert report.model_uri == "models:/suspect/2"
    assert report.metrics["before"]["attack_success_rate"] >= 0.95
    assert report.metrics["after"]["attack_success_rate"] <= 0.10
    assert sorted(path.name for path in (tmp_path / "job").iterdir()) == [
        ".lock", "encoder.onnx", "job.json", "model.safetensors", "report.html", "report.json", "sanitize.json",
    ]  # fmt: skip
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads(result.stdout)
    for suffix in ("sarif", "xml", "md", "html", "txt"):
        assert (tmp_path / f"out.{suffix}").stat().st_size > 200
    assert "unlearn" in result.stderr  # progress
    verified = sanitize("verify", "models:/suspect/2", folder=tmp_path, store=suspect)
    assert verified.returncode == 0, verified.stderr
    again = sanitize(
        "encoder", "models:/suspect/1", "--method", "bmaiu", "--workdir", "job", "--resume", "--quiet",
        folder=tmp_path, store=suspect,
    )  # fmt: skip
    assert again.returncode == 0
    assert "models:/suspect/2" in again.stdout
    assert sorted(versions(suspect)) == ["1", "2"]
    assert running(suspect) == []


@pytest.mark.slow
def test_without_a_trigger_the_verdict_is_inconclusive(store_uri, tmp_path, encoders):
    taken = sanitize("intake", encoders.backdoored_file, "--name", "other", *BIND, folder=tmp_path, store=store_uri)
    assert taken.returncode == 0, taken.stderr
    assert taken.stdout == "models:/other/1\n"
    result = sanitize(
        "encoder", "models:/other/1", "--method", "bmaiu", *DATA, "--set", "epochs=1", "--quiet",
        "--format", "markdown", folder=tmp_path, store=store_uri,
    )  # fmt: skip
    assert result.returncode == 3, result.stderr
    assert "--trigger" in result.stdout
    assert result.stderr == ""
    from mlflow import MlflowClient

    client = MlflowClient(store_uri)
    assert client.get_model_version("other", "2").tags["sanitize.verdict"] == "inconclusive"
    assert "sanitized" not in client.get_registered_model("other").aliases


BAD_INPUT = {
    "no such model": (["encoder", "models:/nobody/1", "--method", "bmaiu"], "nobody"),
    "no such version": (["encoder", "models:/suspect/7", "--method", "bmaiu"], "7"),
    "not a model URI": (["encoder", "suspect.pth", "--method", "bmaiu"], "models:/NAME/VERSION"),
    "unknown method": (["encoder", "models:/suspect/1", "--method", "bmaui"], "Did you mean bmaiu"),
    "no method": (["encoder", "models:/suspect/1"], "--method"),
    "unknown parameter": (
        ["encoder", "models:/suspect/1", "--method", "bmaiu", "--set", "epoch=1"],
        "Did you mean epochs",
    ),
    "wrong architecture": (
        ["encoder", "models:/suspect/1", "--method", "bmaiu", "--arch", "resnet18-cifar"],
        "conv1.weight",
    ),
    "unknown architecture": (
        ["encoder", "models:/suspect/1", "--method", "bmaiu", "--arch", "resnet18-cifr"],
        "Did you mean resnet18-cifar",
    ),
    "unknown normalization": (
        ["encoder", "models:/suspect/1", "--method", "bmaiu", "--normalization", "cifar"],
        "cifar10",
    ),
    "too few images": (["encoder", "models:/suspect/1", "--method", "bmaiu", "--data", "digits#0:20"], "at least 64"),
    "no such data": (["encoder", "models:/suspect/1", "--method", "bmaiu", "--data", "gone.parquet"], "gone.parquet"),
    "corrupt data": (["encoder", "models:/suspect/1", "--method", "bmaiu", "--data", "bad.parquet"], "bad.parquet"),
    "no labels": (["encoder", "models:/suspect/1", "--method", "bmaiu", "--probe-data", "flat"], "labels"),
    "unknown device": (["encoder", "models:/suspect/1", "--method", "bmaiu", "--device", "abacus"], "abacus"),
    "unknown format": (["encoder", "models:/suspect/1", "--method", "bmaiu", "--format", "jsn"], "Did you mean json"),
    "unknown suffix": (["encoder", "models:/suspect/1", "--method", "bmaiu", "-o", "x.pdf"], ".html"),
    "no trigger file": (["encoder", "models:/suspect/1", "--method", "bmaiu", "--trigger", "t.yaml"], "t.yaml"),
    "nothing to resume": (["encoder", "models:/suspect/1", "--method", "bmaiu", "--resume"], "nothing to resume"),
    "no such server": (
        ["encoder", "models:/suspect/1", "--method", "bmaiu", "--tracking-uri", "http://127.0.0.1:9"],
        "127.0.0.1:9",
    ),
    "intake of nothing": (["intake", "gone.pth", "--name", "x"], "gone.pth"),
    "intake of rubbish": (["intake", "rubbish.pth", "--name", "x"], "rubbish.pth"),
    "intake of NaN": (["intake", "nan.pth", "--name", "x"], "NaN"),
    "bind nothing": (["bind", "models:/suspect"], "nothing to bind"),
    "bind a stranger": (["bind", "models:/nobody", "--normalization", "half"], "nobody"),
    "verify a suspect": (["verify", "models:/suspect/1"], "suspect/1"),
}


@pytest.fixture(scope="module")
def bad_input_folder(tmp_path_factory, empty_store, encoders):
    """A folder with a store and with files that are wrong in many ways; no test below may change the store."""
    from PIL import Image

    from sanitize.intake import Knowledge, take_in
    from tests.conftest import copied_store

    folder = tmp_path_factory.mktemp("bad")
    store = copied_store(empty_store, folder)
    known = Knowledge(data="digits#0:420", arch="small-cnn", normalization="half", image_size=32)
    take_in(encoders.backdoored_file, "suspect", known, tracking_uri=store)
    (folder / "bad.parquet").write_bytes(b"PAR1 this is not parquet PAR1")
    (folder / "rubbish.pth").write_bytes(b"\x00rubbish" * 100)
    (folder / "flat").mkdir()
    for number in range(3):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(folder / "flat" / f"{number}.png")
    state = encoders.backdoored.backbone.state_dict()
    name = next(iter(state))
    torch.save(state | {name: torch.full_like(state[name], float("nan"))}, folder / "nan.pth")
    return folder, store


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_paragraph_and_leaves_nothing(case, bad_input_folder):
    folder, store = bad_input_folder
    arguments, named = BAD_INPUT[case]
    before = sorted(path for path in folder.rglob("*") if "mlflow.db" not in path.name)
    result = sanitize(*arguments, folder=folder, store=store)
    assert is_one_clear_paragraph(result), (result.returncode, result.stdout, result.stderr)
    assert named in result.stderr
    after = sorted(path for path in folder.rglob("*") if "mlflow.db" not in path.name)
    assert after == before
    assert versions(store) == ["1"]
    assert versions(store, "x") == []
    assert running(store) == []


def test_usage_errors_are_2(tmp_path):
    result = sanitize("encoder", "--no-such-option", folder=tmp_path)
    assert result.returncode == 2
    assert "no-such-option" in result.stderr


@pytest.mark.parametrize("command", ["methods", "recipes"])
def test_lists_name_the_method(command, tmp_path):
    result = sanitize(command, folder=tmp_path)
    assert result.returncode == 0
    assert "bmaiu" in result.stdout


def test_doctor_sees_this_machine(store_uri, tmp_path):
    result = sanitize("doctor", folder=tmp_path, store=store_uri)
    assert result.returncode == 0, result.stdout
    for check in ("torchvision", "ONNX Runtime", "MLflow store"):
        assert check in result.stdout


def test_doctor_finds_a_server_that_is_away(tmp_path):
    result = sanitize("doctor", "--tracking-uri", "http://127.0.0.1:9", folder=tmp_path)
    assert result.returncode == 1
    assert "fault" in result.stdout
