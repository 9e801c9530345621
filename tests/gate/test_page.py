"""docs/gate.md and docs/registry.md are true to the code."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from sanitize.gate import Decision, Waiver, promotion
from sanitize.gate import gate as code
from tests.test_docs import table

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "gate.md"


def test_every_decision_is_explained():
    assert {row[0].strip("`") for row in table(PAGE, "`sanitize.gate`")} == set(Decision)


def test_every_tag_is_explained():
    source = "".join(Path(module.__file__).read_text() for module in (code, promotion))
    source += Path(code.__file__).with_name("records.py").read_text()
    written = set(re.findall(r'"(sanitize\.[a-z_0-9]+)"', source)) - {"sanitize.gate_key", "sanitize.record_sha256"}
    explained = {tag for row in table(PAGE, "tag of the version") for tag in re.findall(r"`([^`]+)`", row[0])}
    assert explained == written


def test_the_waiver_of_the_page_is_one():
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (waiver,) = [Waiver.model_validate(item) for item in yaml.safe_load(text)]
    keys = {key for row in table(PAGE, "key") for key in re.findall(r"`([^`]+)`", row[0])}
    assert keys == set(Waiver.model_fields) == set(waiver.model_dump())


def test_the_accounts_of_the_page_are_those_of_the_script():
    script = (DOCS.parent / "registry/accounts.py").read_text()
    for row in table(DOCS / "registry.md", "account"):
        pattern = rf"^\| {row[0]} +\| {row[1]} +\| {row[2]} +\| {row[3]} +\| {row[4]} +\|$"
        assert re.search(pattern, script, re.MULTILINE), row
