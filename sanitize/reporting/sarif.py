"""The report as SARIF 2.1.0, for code-scanning pages: one result for the verdict, one for each finding."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import quote

from sanitize.reporting import wording
from sanitize.types import Finding, Report, Severity, Verdict

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
VERDICT_RULE = "verdict"
DEFAULT_LOCATION = "report.json"
_SECURITY_SEVERITY = {Severity.ERROR: "8.0", Severity.WARNING: "5.0", Severity.NOTE: "2.0"}


def sarif(report: Report) -> str:
    """The report as a SARIF log.

    Rule identifiers and fingerprints depend on the rule and the model's digest alone, so that the same observation on
    the same model is one alert however often it is reported. `fail` is an error, `inconclusive` a warning; `pass` has
    no result of its own but a notification, since code-scanning pages open an alert for every result. Locations are the
    model's URI (logical) and a stable relative path (physical): the policy when the report names one.
    """
    found = [*_verdict(report), *report.findings]
    rules = {finding.rule: finding for finding in sorted(found, key=_weight)}  # the heaviest of a rule describes it
    seen: Counter[str] = Counter()
    results = []
    for finding in found:
        results.append(_result(report, finding, list(rules).index(finding.rule), seen[finding.rule]))
        seen[finding.rule] += 1
    run = {
        "tool": {
            "driver": {
                "name": wording.plain(report.tool.get("name", "sanitize")),
                "version": wording.plain(report.tool.get("version", "")),
                "rules": [_rule(finding) for finding in rules.values()],
            }
        },
        "automationDetails": {"id": f"sanitize/{wording.plain(report.subject.get('uri', ''))}/"},
        "invocations": [
            {
                "executionSuccessful": True,
                "exitCode": report.verdict.exit_code,
                "toolExecutionNotifications": [
                    {
                        "descriptor": {"id": VERDICT_RULE},
                        "level": "note",
                        "message": {"text": _verdict_text(report)},
                    }
                ],
            }
        ],
        "results": results,
        "columnKind": "unicodeCodePoints",
        "properties": {"verdict": report.verdict.value, "reasons": list(map(wording.plain, report.reasons))},
    }
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _verdict(report: Report) -> list[Finding]:
    if report.verdict is Verdict.PASS:
        return []
    severity = Severity.ERROR if report.verdict is Verdict.FAIL else Severity.WARNING
    return [Finding(rule=VERDICT_RULE, severity=severity, message=_verdict_text(report))]


def _verdict_text(report: Report) -> str:
    reasons = "; ".join(map(wording.plain, report.reasons))
    return f"Verdict {report.verdict.value}: {wording.HEADLINES[report.verdict]} {reasons}".strip()


def _weight(finding: Finding) -> int:
    return list(Severity).index(finding.severity)


def _rule(finding: Finding) -> dict[str, Any]:
    rule = wording.plain(finding.rule)
    title = "Verdict on the model" if rule == VERDICT_RULE else rule.replace("-", " ").capitalize()
    return {
        "id": rule,
        "shortDescription": {"text": title},
        "defaultConfiguration": {"level": finding.severity.value},
        "properties": {"tags": ["security"], "security-severity": _SECURITY_SEVERITY[finding.severity]},
    }


def _result(report: Report, finding: Finding, index: int, occurrence: int) -> dict[str, Any]:
    uri = wording.plain(report.subject.get("uri", "unknown"))
    digest = wording.plain(report.subject.get("sha256") or uri)
    identity = "\n".join([finding.rule, digest, *([str(occurrence)] if occurrence else [])])
    return {
        "ruleId": wording.plain(finding.rule),
        "ruleIndex": index,
        "level": finding.severity.value,
        "message": {"text": wording.plain(finding.message)},
        "locations": [
            {
                "physicalLocation": {"artifactLocation": {"uri": _relative(report.outputs.get("policy"))}},
                "logicalLocations": [{"fullyQualifiedName": uri, "kind": "resource"}],
            }
        ],
        "partialFingerprints": {
            "sanitize/v1": hashlib.sha256(identity.encode("utf-8", errors="backslashreplace")).hexdigest()
        },
        "properties": {"evidence": _json_safe(finding.evidence)},
    }


def _relative(policy: Any) -> str:
    """A relative path as a URI; a path that would lead out of the repository keeps its file name only."""
    if not policy:
        return DEFAULT_LOCATION
    path = PurePosixPath(str(policy))
    if path.is_absolute() or ".." in path.parts or PureWindowsPath(str(policy)).drive:
        path = PurePosixPath(PureWindowsPath(str(policy)).name)
    return quote(wording.plain(path)) or DEFAULT_LOCATION


def _json_safe(value: Any) -> Any:
    """Evidence with its text made visible, and non-finite numbers as text: JSON has none."""
    if isinstance(value, dict):
        return {wording.plain(key): _json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_safe(item) for item in value]
    if isinstance(value, bool | int) or value is None:
        return value
    if isinstance(value, float) and abs(value) < float("inf"):
        return value
    return wording.plain(value)
