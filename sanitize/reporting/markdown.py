"""The report as Markdown: in full for a CI summary, in short for the description of a model version."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote

from sanitize.reporting import wording
from sanitize.types import Report

# Every character that Markdown, GitHub's extensions or embedded HTML could give a meaning to.
_ESCAPES = {ord(character): f"\\{character}" for character in "\\`*_{}[]()#+!|~$"} | {
    ord("<"): "&lt;",
    ord(">"): "&gt;",
    ord("&"): "&amp;",
    ord("@"): "&#64;",
}

_GAP = "\u00a0\u00a0"  # MLflow's UI sets the columns of a table close to each other


def markdown(report: Report) -> str:
    """The whole report, for `$GITHUB_STEP_SUMMARY` and other places that show Markdown."""
    subject, method = _text(report.subject.get("uri", "")), _text(report.defense.get("name", ""))
    parts = [
        f"# Sanitization report: {report.verdict.value}",
        f"**{subject}**, method {method}, seed {report.seed}",
        wording.HEADLINES[report.verdict],
        _bullets(report.reasons),
        *_section("Before and after", _measures(report)),
        *_section("Drill", _drill(report)),
        *_section("Not measured", _bullets(f"{title}: {reason}" for title, reason in wording.unmeasured(report))),
        *_section(
            "Findings",
            _table(
                ("Severity", "Rule", "What was found"),
                [(finding.severity.value, finding.rule, finding.message) for finding in report.findings],
            ),
        ),
        *_section("Outputs", _table(("Output", "Value"), wording.outputs(report))),
        *_section("Next", "\n\n".join(_code(command) for command in wording.next_commands(report))),
        *_section("Parameters", _table(("Parameter", "Value", "Paper", "Meaning"), wording.parameters(report))),
        *_section("Policy", _table(("Key", "Value"), wording.facts(report.defense.get("policy") or {}))),
        *_section("Subject", _table(("Fact", "Value"), wording.facts(report.subject))),
        *_section("Data", _table(("Fact", "Value"), wording.facts(report.data))),
        *_section("Environment", _table(("Fact", "Value"), wording.environment(report))),
        *([wording.REFIT] if _is_cleaned_encoder(report) else []),
        wording.LIMITS,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def description(report: Report) -> str:
    """The short form for the description of a registered version: verdict, reasons, before and after."""
    origin = "Trained on" if "trained" in report.subject else "Cleaned from"
    parts = [
        f"**Verdict: {report.verdict.value}.** {wording.HEADLINES[report.verdict]}",
        f"{origin} {_linked(str(report.subject.get('uri', '')))} with method {_text(report.defense.get('name', ''))}.",
        _bullets(report.reasons),
        _measures(report, gap=_GAP),
        _bullets(f"Not measured: {title}: {reason}" for title, reason in wording.unmeasured(report)),
        wording.REFIT if _is_cleaned_encoder(report) else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _linked(uri: str) -> str:
    """A version of the registry as a link within MLflow's UI; other subjects as text."""
    match = re.fullmatch(r"models:/([^/]+)/(\d+)", uri)
    return f"[{_text(uri)}](#/models/{quote(match[1], safe='')}/versions/{match[2]})" if match else _text(uri)


def _measures(report: Report, *, gap: str = "") -> str:
    lines = [("Measure", "Before", "After", "Change")]
    lines += [(row.title, row.before, row.after, row.change) for row in wording.rows(report)]
    header, *rest = [(title, *(f"{gap}{cell}" for cell in cells)) for title, *cells in lines]
    return _table(header, rest, numbers=3)


def _drill(report: Report) -> str:
    sentences, lines = wording.drill(report)
    return "\n\n".join([*map(_text, sentences), _table(wording.DRILL_HEADER, lines)]) if lines else ""


def _is_cleaned_encoder(report: Report) -> bool:
    return report.subject.get("kind") == "encoder"


def _section(title: str, body: str) -> list[str]:
    return [f"## {title}", body] if body else []


def _table(header: Sequence[str], lines: Iterable[Sequence[str]], *, numbers: int = 0) -> str:
    """A table whose last `numbers` columns are aligned to the right; empty without lines."""
    body = [_line(map(_text, line)) for line in lines]
    rule = ["---"] * (len(header) - numbers) + ["---:"] * numbers
    return "\n".join([_line(header), _line(rule), *body]) if body else ""


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _bullets(items: Iterable[str]) -> str:
    return "\n".join(f"- {_text(item)}" for item in items)


def _text(value: Any) -> str:
    """Text that Markdown shows as it is."""
    return wording.plain(value).translate(_ESCAPES)


def _code(command: str) -> str:
    """A command as a code block, whatever it contains: four spaces need no closing mark."""
    return f"    {command}"
