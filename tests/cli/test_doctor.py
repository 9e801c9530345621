"""`sanitize doctor` on environments that are faulty: packages put in front of the good ones, tools taken away."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sanitize.diagnosis import Check, _unmet, diagnose


def doctor(*arguments: str, folder: Path, path: str | None = None) -> tuple[int, dict[str, tuple[str, str]]]:
    """Exit code, and check -> (status, the rest of its row), with `folder` in front of the installed packages."""
    environment = os.environ | {"COLUMNS": "400", "NO_COLOR": "1", "PYTHONPATH": str(folder)}
    if path is not None:
        environment["PATH"] = path
    result = subprocess.run(
        [sys.executable, "-m", "sanitize", "doctor", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in result.stdout.splitlines() if "│" in line]
    return result.returncode, {row[1]: (row[0], " ".join(row[2:]).strip()) for row in rows}


def installed(folder: Path, name: str, version: str, requires: str = "") -> None:
    """Metadata of a distribution, as pip leaves it."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}")


@pytest.mark.slow
def test_packages_that_do_not_fit(tmp_path):
    (tmp_path / "torchvision").mkdir()
    broken = 'raise RuntimeError("operator torchvision::nms does not exist")\n'  # as with a wheel for another torch
    (tmp_path / "torchvision" / "__init__.py").write_text(broken)
    installed(tmp_path, "onnxruntime", "1.20.0")
    installed(tmp_path, "onnxruntime-gpu", "1.20.0")
    installed(tmp_path, "kornia", "0.1.0")
    code, rows = doctor(folder=tmp_path)
    assert code == 1
    assert rows["torchvision"][0] == "fault"
    assert "nms does not exist" in rows["torchvision"][1] and "same index" in rows["torchvision"][1]
    assert rows["ONNX Runtime"][0] == "fault"
    assert "exactly one" in rows["ONNX Runtime"][1]
    assert rows["packages"][0] == "fault"
    assert re.search(r"pip install 'kornia>=", rows["packages"][1])
    assert rows["device"][0] == "fault"  # what needs torchvision cannot be checked, and is no crash
    assert rows["torch"][0] == rows["Python"][0] == "ok"


@pytest.mark.slow
def test_a_device_a_server_and_a_sandbox_that_do_not_work(tmp_path):
    tool = tmp_path / "bin" / "bwrap"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    tool.chmod(0o755)
    device = "mps" if torch.cuda.is_available() else "cuda"
    arguments = ("--device", device, "--tracking-uri", "http://127.0.0.1:9")
    code, rows = doctor(*arguments, folder=tmp_path, path=str(tool.parent))
    assert code == 1
    assert rows["device"][0] == "fault"
    assert "--device cpu" in rows["device"][1]
    assert rows["MLflow store"][0] == "fault"
    assert "127.0.0.1:9" in rows["MLflow store"][1] and "--tracking-uri" in rows["MLflow store"][1]
    assert rows["sandbox for suspects"][0] == "weak"
    assert "user namespaces" in rows["sandbox for suspects"][1]


def test_a_good_machine_has_no_fault(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checks = {check.name: check for check in diagnose(tracking_uri="sqlite:///none.db", device="cpu")}
    assert {name for name, check in checks.items() if not check.ok} <= {"free disk here"}
    assert "not made yet" in checks["MLflow store"].seen
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_extras_and_a_sandbox_that_are_missing(tmp_path):
    installed(
        tmp_path,
        "model-sanitizer",
        "0.0.1",
        "Provides-Extra: dev\nRequires-Dist: nothing-of-that-name; extra == 'dev'\n",
    )
    _, rows = doctor(folder=tmp_path, path="/nonexistent")
    assert rows["sandbox for suspects"][0] == "weak"
    assert "install bubblewrap" in rows["sandbox for suspects"][1]
    assert rows["extras"] == ("ok", "dev: 1 packages missing (for tests and documentation only)")


def test_requirements_of_an_extra_are_its_own():
    assert _unmet("") == []
    assert not {"torch", "mlflow"} & {re.split(r"[<>=!~]", item)[0] for item in _unmet("no-such-extra")}


def test_a_weak_check_is_not_a_fault():
    assert [Check("x", ok, "", weak=weak).status for ok, weak in ((True, False), (True, True), (False, True))] == [
        "ok",
        "weak",
        "fault",
    ]
