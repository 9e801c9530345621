"""Wrong names get a hint, in one paragraph; lists and recipes fit a terminal of 80 columns."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from sanitize.cli import app
from sanitize.recipes import recipe_names

TRAIN = ["train", "digits", "--register", "x", "--normalization", "half", "--image-size", "32"]
WRONG = {
    "command": (["encodr"], "Did you mean 'encoder'"),
    "option": (["encoder", "models:/x/1", "--methd", "uau"], "--method"),
    "method": (["encoder", "models:/x/1", "--method", "bmaui"], "Did you mean bmaiu"),
    "method for classifiers": (["classifier", "models:/x/1", "--method", "i-bua"], "Did you mean i-bau"),
    "parameter": (["encoder", "models:/x/1", "--method", "uau", "--set", "round=3"], "Did you mean rounds"),
    "detector of models": (["scan", "models:/x/1", "--method", "decre"], "Did you mean decree"),
    "detector of data": (["dataset", "digits", "--method", "poisoncm"], "Did you mean poisoncam"),
    "training": ([*TRAIN, "--arch", "small-cnn", "--method", "simcrl"], "Did you mean simclr"),
    "architecture": ([*TRAIN, "--arch", "resnet18-cifr", "--method", "simclr"], "Did you mean resnet18-cifar"),
    "attack": (["attack", "badencodr", "--data", "digits"], "Did you mean badencoder"),
    "recipe": (["encoder", "models:/x/1", "--recipe", "uau-few-image"], "Did you mean uau-few-images"),
    "recipe to show": (["recipes", "show", "uau-few-image"], "Did you mean uau-few-images"),
    "format": (["encoder", "models:/x/1", "--method", "uau", "--format", "markdwn"], "Did you mean markdown"),
}


def invoke(*arguments):
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "80", "NO_COLOR": "1"})


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_name_gets_a_hint(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, hint = WRONG[case]
    result = invoke(*arguments, *(["--tracking-uri", "sqlite:///none.db"] if case == "architecture" else []))
    assert result.exit_code == 2
    assert hint in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_shown_within_80_columns(name):
    result = invoke("recipes", "show", name)
    assert result.exit_code == 0, result.output
    shown, command = result.stdout.split("Use it: ")
    assert max(map(len, shown.splitlines())) <= 80
    assert command.rstrip().endswith(f"--recipe {name}")


def test_a_recipe_is_shown_with_the_paper_s_values_and_the_reasons():
    lines = invoke("recipes", "show", "nad").stdout.splitlines()
    row = next(line for line in lines if "learning_rate" in line)
    assert [cell.strip() for cell in row.split("│")[1:4]] == ["learning_rate", "0.01", "0.1"]
    assert "authors' 0.1" in row
    assert any("weights" in line and "500" in line for line in lines)  # left at a default that is not the paper's


def test_own_recipes_are_shown_as_they_are(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("method: nad\nsummary: '[bold]mine[/bold]'\nparameters: {epochs: 3}\nreasons: {epochs: '[red]'}\n")
    result = invoke("recipes", "show", str(path))
    assert "[bold]mine[/bold]" in result.stdout
    assert "[red]" in result.stdout


def test_recipes_alone_are_listed():
    result = invoke("recipes")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in recipe_names())
