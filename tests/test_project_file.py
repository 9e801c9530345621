"""`MLproject`: its commands are those of the tool, and `mlflow run` works with it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from sanitize.cli import app
from sanitize.tracking import Store

ROOT = Path(__file__).parent.parent
PROJECT = yaml.safe_load((ROOT / "MLproject").read_text())


@pytest.mark.parametrize("name", PROJECT["entry_points"])
def test_its_commands_exist(name):
    entry = PROJECT["entry_points"][name]
    words = shlex.split(entry["command"])
    assert words[0] == "sanitize"
    known = {option for item in get_command(app).commands[words[1]].params for option in item.opts}
    assert {word for word in words if word.startswith("--")} <= known
    assert {word.strip("{}") for word in words if word.startswith("{")} == set(entry["parameters"])


@pytest.mark.slow
def test_mlflow_runs_it(suspect, tmp_path):
    """The version is there, and the run of the project succeeded where the verdict is pass, and failed elsewhere."""
    store = Store(suspect)
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": suspect,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "TMPDIR": str(tmp_path),
    }
    parameters = {"model": "models:/suspect/1", "method": "clp", "workdir": str(tmp_path / "job")}
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", "run", str(ROOT), "--env-manager", "local", "--entry-point", "encoder",
         *(part for item in parameters.items() for part in ("-P", "=".join(item)))],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert "sanitize encoder models:/suspect/1 --method clp" in done.stdout + done.stderr
    made = store.versions("suspect")[-1]
    assert str(made.version) == "2", done.stderr
    assert done.returncode == (0 if made.tags["sanitize.verdict"] == "pass" else 1)
    assert (tmp_path / "job" / "report.html").is_file()
    assert not (ROOT / "mlruns").exists()
