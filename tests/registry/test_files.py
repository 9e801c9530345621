"""What is deployed and cannot be run here: parsed, and compared with the commands that it names."""

from __future__ import annotations

import configparser
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.cli import cli as mlflow

from sanitize.policies import load_policy
from tests.test_docs import COMMANDS

REGISTRY = Path(__file__).parents[2] / "registry"
COMPOSE = yaml.safe_load((REGISTRY / "compose.yaml").read_text())
UNITS = sorted((REGISTRY / "systemd").glob("*.service"))
TEMPLATES = sorted((REGISTRY / "ci").glob("*.yml"))
SCRIPTS = sorted(REGISTRY.glob("*.sh"))


def check(command: list[str]) -> None:
    """A command of ours or of MLflow's, with options that it has."""
    program, name, *rest = command
    known = {"sanitize": COMMANDS, "mlflow": mlflow.commands}[Path(program).name]
    options = {option for parameter in known[name].params for option in (*parameter.opts, *parameter.secondary_opts)}
    given = {part.partition("=")[0] for part in rest if part.startswith("--")}
    assert given and given <= options, given - options


def exec_start(unit: Path) -> list[str]:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment]
    parser.read(unit)
    assert {"Unit", "Service", "Install"} <= set(parser.sections())
    assert parser["Service"]["NoNewPrivileges"] == "true"
    assert parser["Service"]["User"] not in ("", "root")
    return shlex.split(parser["Service"]["ExecStart"])


def shell_commands(template: Any) -> list[str]:
    """All strings of a CI template that run the gate."""
    if isinstance(template, dict):
        return [text for value in template.values() for text in shell_commands(value)]
    if isinstance(template, list):
        return [text for value in template for text in shell_commands(value)]
    return [template] if isinstance(template, str) and template.startswith("sanitize gate") else []


def test_compose_runs_commands_that_exist():
    for service in ("mlflow", "gate"):
        check(COMPOSE["services"][service]["command"])
    for service in COMPOSE["services"].values():
        assert set(service.get("networks", [])) <= set(COMPOSE["networks"])
        for needed in service.get("depends_on", []):
            assert needed in COMPOSE["services"]


def test_compose_shows_only_the_proxy_and_keeps_the_keys_of_the_store_inside():
    services = COMPOSE["services"]
    assert [name for name, service in services.items() if "ports" in service] == ["proxy"]
    assert [name for name, service in services.items() if "AWS_SECRET_ACCESS_KEY" in str(service)] == ["mlflow"]
    assert "--serve-artifacts" in services["mlflow"]["command"]
    assert any(part.startswith("--allowed-hosts=${DOMAIN") for part in services["mlflow"]["command"])
    assert COMPOSE["networks"]["inside"] == {"internal": True}


def test_every_variable_has_an_example_and_no_secret_has_a_default():
    text = "\n".join(line for line in (REGISTRY / "compose.yaml").read_text().splitlines() if "#" not in line[:3])
    used = set(re.findall(r"\$\{(\w+):\?\}", text)) | {COMPOSE["secrets"]["webhook"]["environment"]}
    assert not re.search(r"\$\{\w+(:-|\})", text)
    examples = dict(
        line.split("=", 1) for line in (REGISTRY / "example.env").read_text().splitlines() if not line.startswith("#")
    )
    assert set(examples) == used
    assert all(value.startswith("change-me") for name, value in examples.items() if name != "DOMAIN")


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_units(unit: Path):
    check(exec_start(unit))


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_ci_templates_run_the_gate_and_keep_its_exit_code(template: Path):
    (command,) = shell_commands(yaml.safe_load(template.read_text()))
    check(shlex.split(command.replace('"$MODEL"', "models:/inbox@candidate")))
    assert not re.search(r"\|\||;|&&|\|", command)
    assert "--output gate.sarif" in command and "--output gate.xml" in command
    assert "continue-on-error" not in template.read_text() and "allow_failure" not in template.read_text()
    (policy,) = re.findall(r"--policy (\S+)", command)
    load_policy(REGISTRY.parent / policy)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_shell(script: Path):
    subprocess.run(["bash", "-n", script], check=True)
    assert "set -euo pipefail" in script.read_text()


def test_the_readme_names_every_file_and_what_was_not_run():
    rows = {
        name: row
        for row in (REGISTRY / "README.md").read_text().splitlines()
        if row.startswith("| `")
        for name in re.findall(r"`([^`]+)`", row.split("|")[1])
    }
    there = {f"{path.name}/" if path.is_dir() else path.name for path in REGISTRY.iterdir()} - {
        "README.md",
        "__pycache__/",
    }
    assert {name if not name.startswith("ci/") else "ci/" for name in rows} == there
    for name, row in rows.items():
        path = REGISTRY / name
        for file in path.iterdir() if path.is_dir() else [path]:
            if "not run" in row and file.suffix != ".env":
                assert "NOT RUN" in file.read_text(), file
