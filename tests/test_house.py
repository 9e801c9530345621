"""The project's own files are true: citations, licence, version, checks, links of the site."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from packaging.requirements import Requirement

from sanitize.attacks import ATTACKS
from sanitize.defenses import DEFENSES
from sanitize.detection import DETECTORS
from sanitize.detection.catalogue import MODEL_DETECTORS
from sanitize.trainers import TRAINERS

ROOT = Path(__file__).parent.parent
METHODS = {**DEFENSES, **DETECTORS, **MODEL_DETECTORS, **TRAINERS, **ATTACKS}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_notice_cites_every_method(name):
    notice = (ROOT / "NOTICE").read_text()
    headings = re.findall(r"^  (\S.*)$", notice, re.MULTILINE)
    assert name in re.findall(r"[\w-]+", " ".join(headings)), "add its paper to NOTICE"
    assert METHODS[name].paper.url in notice.split()


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md"])
def test_links_lead_somewhere(name):
    targets = re.findall(r"\]\(([^)\s]+)\)", (ROOT / name).read_text())
    assert targets
    for target in targets:
        assert (ROOT / target.partition("#")[0]).exists(), target


def test_contributing_and_ci_name_the_same_checks():
    contributing, ci = ((ROOT / name).read_text() for name in ("CONTRIBUTING.md", ".ci/run"))
    for check in ("ruff", "mypy", "pytest", "mkdocs", "build"):
        assert f"`{check}" in contributing or f"-m {check}" in contributing
        assert f'/{check}"' in ci or f"-m {check}" in ci
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert {hook["entry"].split()[0] for hook in hooks} == {"ruff", "mypy"}


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_constraints_name_a_fitting_version_of_every_dependency():
    extras = PROJECT["optional-dependencies"]
    needed = [Requirement(text) for text in (*PROJECT["dependencies"], *extras["dev"], *extras["docs"])]
    free = {"torch", "torchvision", "onnxruntime", "onnxruntime-gpu"}  # which build fits depends on the machine
    pinned = constraints()
    assert set(pinned) == {requirement.name.lower() for requirement in needed} - free
    for requirement in needed:
        version = pinned.get(requirement.name.lower())
        assert version is None or requirement.specifier.contains(version), requirement
    assert "-c constraints.txt" in (ROOT / ".ci/run").read_text()


def test_the_versions_of_the_documentation_are_those():
    least = {Requirement(text).name: str(Requirement(text).specifier) for text in PROJECT["dependencies"]}
    rows = re.findall(r"^\| ([\w-]+) \| ([\d.]+) \| ([\d.]+) \|$", (ROOT / "docs/install.md").read_text(), re.MULTILINE)
    assert len(rows) >= 8
    for name, minimum, tested in rows:
        assert least[name] == f">={minimum}"
        assert constraints().get(name, tested) == tested


def test_links_that_leave_the_site_become_text(tmp_path: Path):
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs/hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    page = SimpleNamespace(file=SimpleNamespace(abs_src_path=str(tmp_path / "docs/methods/a.md")))
    config = SimpleNamespace(docs_dir=str(tmp_path / "docs"))
    source = "[out](../../README.md) [in](../b.md#c) [web](https://example.org)\n```\n[out](../../x)\n```\n"
    shown = hooks.on_page_markdown(source, page=page, config=config)
    assert shown == "out [in](../b.md#c) [web](https://example.org)\n```\n[out](../../x)\n```\n"
