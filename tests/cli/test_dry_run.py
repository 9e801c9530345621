"""`--dry-run` of every command that has it: what it says, and that nothing is left behind."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sanitize.cli import app
from sanitize.intake import Knowledge, take_in
from sanitize.tracking import Store
from tests.conftest import copied_store

BOUND = {"arch": "small-cnn", "normalization": "half", "image_size": 32}


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"NO_COLOR": "1"})


def content(folder: Path) -> dict[str, object]:
    """Every file with its bytes; the database as what is in its tables."""
    with sqlite3.connect(folder / "mlflow.db") as database:
        rows = list(database.iterdump())
    files = {
        str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and "mlflow.db" not in path.name
    }
    return files | {"mlflow.db": rows}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, empty_store, encoders):
    """A store with models:/suspect/1, an encoder with all data bound, and models:/clean/1, the same."""
    folder = tmp_path_factory.mktemp("dry")
    store = copied_store(empty_store, folder)
    known = Knowledge(
        data="digits#0:420",
        probe_data="digits#0:600",
        test_data="digits#1400:",
        triggers=(encoders.trigger_file,),
        **BOUND,
    )
    take_in(encoders.backdoored_file, "suspect", known, tracking_uri=store)
    take_in(encoders.clean_file, "clean", known, tracking_uri=store)
    return folder


@pytest.fixture
def preview(folder, monkeypatch):
    """Runs a command with --dry-run in that folder; fails when anything has changed."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")

    def run(*arguments):
        before = content(folder)
        result = invoke(*arguments, "--dry-run")
        assert content(folder) == before
        return result

    return run


JOBS = {
    "encoder": (
        ["encoder", "models:/suspect/1", "--method", "bmaiu", "--set", "epochs=3"],
        {"images": "420", "clean images": "vouch"},
        [("implant", 21), ("unlearn", 21)],
        ["models:/suspect/2", "encoder.onnx", "suspect-1-bmaiu"],
    ),
    "train": (
        ["train", "digits#0:300", "--register", "new", "--arch", "small-cnn", "--normalization", "half",
         "--image-size", "32", "--recipe", "simclr-small"],
        {"images": "300"},
        [("simclr", 50)],
        ["models:/new/1", "encoder.onnx", "binding", "new-simclr"],
    ),
    "dataset": (
        ["dataset", "digits#0:400", "--method", "fct", "--arch", "small-cnn", "--normalization", "half",
         "--register", "scraped"],
        {"labels": "every", "model": "trained here, by supervised"},
        [("supervised", 18)],
        ["models:/scraped/1", "digits-0-400-fct"],
    ),
    "scan": (
        ["scan", "models:/suspect/1", "--method", "decree", "--reference", "models:/clean/1"],
        {"images": "420"},
        [],
        ["a run in the experiment sanitize"],
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("command", JOBS)
def test_it_says_what_would_be_done(command, preview):
    arguments, needs, stages, writes = JOBS[command]
    result = preview(*arguments, "--format", "json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    for need, how in needs.items():
        assert how in found["needs"][need]
    assert "small-cnn" in found["network"]
    assert found["device"].startswith("cpu")
    for stage, steps in stages:
        assert any(item["name"] == stage and item["steps"] == steps for item in found["estimate"]["stages"])
    assert found["estimate"]["seconds"] is None or found["estimate"]["seconds"] > 0
    assert found["estimate"]["note"]
    assert (found["evaluation"] > 0) == (command == "encoder")  # the others were given nothing to measure with
    for expected in writes:
        assert any(expected in line for line in found["writes"]), found["writes"]


@pytest.mark.slow
def test_it_can_be_read(preview):
    result = preview("encoder", "models:/suspect/1", "--method", "clp")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("This job can run. Nothing was written.")
    for part in ("need: model", "network", "device", "time", "memory", "would write", "attack success rate"):
        assert part in result.stdout
    long = [line for line in result.stdout.splitlines() if len(line) > 80]
    assert all("/" in line for line in long), long  # paths stay whole


@pytest.mark.slow
def test_a_drill_is_named(preview):
    result = preview("encoder", "models:/suspect/1", "--method", "bmaiu", "--set", "epochs=1", "--drill", "2")
    assert result.exit_code == 0, result.stderr
    assert "2 canaries" in result.stdout


def test_an_unfinished_job_is_named(preview, folder):
    job = folder / "job"
    job.mkdir()
    (job / "job.json").write_text(json.dumps({"fingerprint": {}, "run_id": None, "finished": False}))
    result = preview("encoder", "models:/suspect/1", "--method", "clp", "--workdir", job)
    assert "unfinished job" in result.stdout


UNMET = {
    "labels": (["encoder", "models:/suspect/1", "--method", "fine-tune", "--data", "flat"], "labels"),
    "images": (["encoder", "models:/suspect/1", "--method", "bmaiu", "--data", "digits#0:20"], "at least 64"),
    "kind": (["encoder", "models:/suspect/1", "--method", "d-br"], "classifier"),
    "model": (["encoder", "models:/suspect/9", "--method", "bmaiu"], "9"),
    "data": (["dataset", "gone.parquet", "--method", "fct", "--register", "x"], "gone.parquet"),
    "reference": (["scan", "models:/suspect/1", "--reference", "models:/suspect/1"], "weights of the suspect"),
    "device": (["encoder", "models:/suspect/1", "--method", "clp", "--device", "abacus"], "abacus"),
    "workdir": (["encoder", "models:/suspect/1", "--method", "clp", "--workdir", "mlflow.db/x"], "mlflow.db/x"),
    "format": (["encoder", "models:/suspect/1", "--method", "clp", "--format", "sarif"], "table or json"),
    "resume": (["encoder", "models:/suspect/1", "--method", "clp", "--resume"], "leave --resume out"),
}


@pytest.mark.parametrize("need", UNMET)
def test_what_is_not_met_is_an_error(need, preview, folder):
    from PIL import Image

    flat = folder / "flat"
    flat.mkdir(exist_ok=True)
    for number in range(80):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(flat / f"{number}.png")
    arguments, named = UNMET[need]
    result = preview(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert named in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_no_store_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(
        "train", "digits#0:100", "--register", "new", "--arch", "small-cnn", "--normalization", "half",
        "--image-size", "32", "--method", "supervised", "--set", "epochs=1", "--tracking-uri", "sqlite:///new.db",
        "--dry-run",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "models:/new/1" in result.stdout
    assert "made anew" in result.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_version_is_the_next_one(preview, folder, encoders):
    store = f"sqlite:///{folder / 'mlflow.db'}"
    take_in(encoders.clean_file, "suspect", Knowledge(), tracking_uri=store)
    assert len(Store(store).versions("suspect")) == 2
    assert "models:/suspect/3" in preview("encoder", "models:/suspect/1", "--method", "clp").stdout
