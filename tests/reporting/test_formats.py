"""JSON, SARIF, JUnit, and what holds for every format."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from sanitize.errors import ConfigError, ExportError
from sanitize.reporting import FORMATS, render, write
from sanitize.types import Finding, Report, Severity, Verdict
from tests.reporting.samples import HOSTILE, empty, hostile, report

VERDICTS = list(Verdict)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("verdict", VERDICTS)
def test_every_format_names_the_verdict_and_never_calls_a_model_safe(format: str, verdict: Verdict):
    text = render(report(verdict), format)
    assert verdict.value in text.lower()
    assert "models:/suspect/1" in text.replace("\\", "")
    assert not re.search(r"\bsafe\b", text, re.IGNORECASE)
    assert text.endswith("\n")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("make", [hostile, empty])
def test_every_format_survives_hostile_and_empty_reports(format: str, make: Any):
    text = render(make(), format)
    if format != "json":  # JSON escapes control characters itself and keeps the others, as data should
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\udc80]", text)
    if format in ("junit", "html", "markdown"):
        assert "<script" not in re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)  # indented code shows it as it is


def test_an_unknown_format_and_suffix_list_the_known(tmp_path: Path):
    with pytest.raises(ConfigError, match="Did you mean markdown"):
        render(report(), "markdwon")
    with pytest.raises(ConfigError, match=r"Known: \.json \(json\), \.sarif"):
        write(report(), tmp_path / "report.pdf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("suffix", "format"),
    [
        (".json", "json"),
        (".sarif", "sarif"),
        (".xml", "junit"),
        (".md", "markdown"),
        (".HTML", "html"),
        (".txt", "table"),
    ],
)
def test_the_suffix_names_the_format(tmp_path: Path, suffix: str, format: str):
    path = tmp_path / "made" / f"report{suffix}"
    write(report(), path)
    assert path.read_text(encoding="utf-8") == render(report(), format)
    write(hostile(), path)  # replaced, and in UTF-8 whatever the names hold
    assert path.read_bytes().decode("utf-8")
    assert list(path.parent.iterdir()) == [path]


def test_a_place_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ExportError, match="could not write"):
        write(report(), tmp_path / "file" / "report.json")


def test_json_schema_is_frozen():
    values = json.loads(render(report(), "json"))
    assert list(values) == [
        "schema_version",
        "tool",
        "subject",
        "defense",
        "data",
        "verdict",
        "reasons",
        "findings",
        "metrics",
        "unmeasured",
        "outputs",
        "timings",
        "throughput",
        "seed",
        "environment",
    ]
    assert values["schema_version"] == 1
    assert values["verdict"] == "pass"
    assert set(values["metrics"]) == {"before", "after"}
    assert set(values["findings"][0]) == {"rule", "severity", "message", "evidence"}
    assert values["metrics"]["before"]["drill_gap"] is None


def test_json_reads_back_to_the_same_report(tmp_path: Path):
    for original in (report(Verdict.FAIL), hostile()):
        write(original, tmp_path / "report.json")
        assert Report.from_dict(json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))) == original


def _sarif(subject: Report) -> dict[str, Any]:
    log: dict[str, Any] = json.loads(render(subject, "sarif"))
    return log


@pytest.mark.parametrize("subject", [*map(report, VERDICTS), hostile(), empty()])
def test_sarif_has_what_the_schema_requires(subject: Report):
    """The required properties, types and value sets of the SARIF 2.1.0 schema, for what is written here."""
    log = _sarif(subject)
    assert log["version"] == "2.1.0"
    assert log["$schema"].endswith("sarif-schema-2.1.0.json")
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"]
    identifiers = [rule["id"] for rule in driver["rules"]]
    assert len(set(identifiers)) == len(identifiers)
    for rule in driver["rules"]:
        assert rule["shortDescription"]["text"]
        assert rule["defaultConfiguration"]["level"] in ("none", "note", "warning", "error")
        assert 0 < float(rule["properties"]["security-severity"]) <= 10
        assert len(set(rule["properties"]["tags"])) == len(rule["properties"]["tags"])
    for invocation in run["invocations"]:
        assert isinstance(invocation["executionSuccessful"], bool)
        assert isinstance(invocation["exitCode"], int)
        for notification in invocation["toolExecutionNotifications"]:
            assert notification["message"]["text"]
            assert notification["level"] in ("none", "note", "warning", "error")
    assert run["columnKind"] in ("utf16CodeUnits", "unicodeCodePoints")
    for result in run["results"]:
        assert result["message"]["text"]
        assert identifiers[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in ("none", "note", "warning", "error")
        assert all(isinstance(value, str) for value in result["partialFingerprints"].values())
        (location,) = result["locations"]
        uri = location["physicalLocation"]["artifactLocation"]["uri"]
        assert re.fullmatch(r"[A-Za-z0-9._~%/-]+", uri)
        assert not uri.startswith("/")
        assert ".." not in uri.split("/")
        assert location["logicalLocations"][0]["fullyQualifiedName"]


@pytest.mark.parametrize(
    ("verdict", "levels"), [(Verdict.FAIL, ["error"]), (Verdict.INCONCLUSIVE, ["warning"]), (Verdict.PASS, [])]
)
def test_sarif_verdict(verdict: Verdict, levels: list[str]):
    (run,) = _sarif(report(verdict))["runs"]
    assert [result["level"] for result in run["results"] if result["ruleId"] == "verdict"] == levels
    assert [result["level"] for result in run["results"] if result["ruleId"] != "verdict"] == ["error", "note"]
    (invocation,) = run["invocations"]
    assert invocation["exitCode"] == verdict.exit_code
    assert [item["level"] for item in invocation["toolExecutionNotifications"]] == ["note"]


def test_sarif_fingerprints_follow_rule_and_digest():
    def prints(subject: Report) -> list[str]:
        (run,) = _sarif(subject)["runs"]
        return [result["partialFingerprints"]["sanitize/v1"] for result in run["results"]]

    first = prints(report(Verdict.FAIL))
    reworded = report(Verdict.FAIL, reasons=["otherwise said"], metrics={"before": {}, "after": {}}, seed=5)
    assert prints(reworded) == first
    assert len(set(first)) == 3
    other = report(Verdict.FAIL, subject={"uri": "models:/suspect/1", "kind": "encoder", "sha256": "ef" * 32})
    assert not set(prints(other)) & set(first)
    twice = Finding(rule="same", severity=Severity.WARNING, message="seen")
    assert len(set(prints(report(findings=[twice, twice])))) == 2


@pytest.mark.parametrize(
    ("policy", "uri"),
    [
        (None, "report.json"),
        ("registry/policies/prod.yaml", "registry/policies/prod.yaml"),
        ("/home/me/prod.yaml", "prod.yaml"),
        ("../up/a policy.yaml", "a%20policy.yaml"),
        ("C:\\policies\\prod.yaml", "prod.yaml"),
    ],
)
def test_sarif_location_is_relative_and_stable(policy: str | None, uri: str):
    (run,) = _sarif(report(Verdict.FAIL, outputs={"policy": policy}))["runs"]
    assert run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == uri


@pytest.mark.parametrize(
    ("verdict", "types"),
    [
        (Verdict.PASS, []),
        (Verdict.FAIL, ["verdict.fail", "artifact-unknown-global"]),
        (Verdict.INCONCLUSIVE, ["verdict.inconclusive", "artifact-unknown-global"]),
    ],
)
def test_junit_verdict_decides(verdict: Verdict, types: list[str]):
    suites = ElementTree.fromstring(render(report(verdict), "junit"))
    assert [failure.get("type") for failure in suites.iter("failure")] == types
    (suite,) = suites
    for element in (suites, suite):
        assert (element.get("tests"), element.get("failures"), element.get("errors"), element.get("skipped")) == (
            "4",
            str(len(types)),
            "0",
            "1",
        )
    assert [case.get("name") for case in suite] == [
        "verdict",
        "artifact-unknown-global",
        "head-dropped",
        "measure: Drill gap",
    ]
    (skipped,) = suites.iter("skipped")
    assert skipped.get("message") == "no drill was asked for (--drill)"


def test_junit_parses_with_hostile_names():
    suites = ElementTree.fromstring(render(hostile(), "junit"))
    (suite,) = suites
    assert "\\x1b[2J\\x00\\u202e" in (suite.get("name") or "")
    assert HOSTILE not in ElementTree.tostring(suites, encoding="unicode")
