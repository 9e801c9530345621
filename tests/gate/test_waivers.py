"""What a waiver needs, and what it covers."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from sanitize.errors import ConfigError
from sanitize.gate import Decision, Waiver, load_waivers
from sanitize.gate.decision import decide
from sanitize.gate.waivers import beside
from sanitize.types import Finding, Report, Severity, Verdict

DIGEST = "a" * 64
TODAY = date(2026, 11, 21)
TEXT = f"""
waivers:
- {{sha256: {DIGEST}, rules: [artifact-code], owner: team-vision, reason: own code, expires: 2026-12-31}}
"""


def waiver(*rules: str, sha256: str = DIGEST, expires: date = date(2026, 12, 31)) -> Waiver:
    return Waiver(sha256=sha256, rules=rules, owner="team-vision", reason="known", expires=expires)


def scanned(verdict: Verdict, *rules: str, references: int = 5) -> Report:
    return Report(
        tool={},
        subject={"sha256": DIGEST, "references": [f"models:/clean/{number}" for number in range(references)]},
        defense={},
        data={},
        verdict=verdict,
        reasons=["because"],
        findings=[Finding(rule=rule, severity=Severity.ERROR, message=rule) for rule in rules],
    )


def decision(report: Report, *waivers: Waiver, cleaned: bool = False) -> Decision:
    return decide(report, waivers, cleaned=cleaned, references=5, today=TODAY).decision


def test_without_waivers_the_verdict_decides():
    assert decision(scanned(Verdict.PASS)) is Decision.APPROVED
    assert decision(scanned(Verdict.FAIL, "collapse")) is Decision.REJECTED
    assert decision(scanned(Verdict.INCONCLUSIVE)) is Decision.UNDECIDED
    assert decision(scanned(Verdict.FAIL, "collapse"), cleaned=True) is Decision.CLEANED
    assert decision(scanned(Verdict.INCONCLUSIVE), cleaned=True) is Decision.CLEANED


def test_a_waiver_must_cover_everything():
    failed = scanned(Verdict.FAIL, "collapse", "artifact-code")
    assert decision(failed, waiver("collapse")) is Decision.REJECTED
    assert decision(failed, waiver("collapse"), waiver("artifact-code")) is Decision.WAIVED
    assert decision(failed, waiver("collapse", "artifact-code")) is Decision.WAIVED
    few = scanned(Verdict.FAIL, "artifact-code", references=4)
    assert decision(few, waiver("artifact-code")) is Decision.REJECTED
    assert decision(few, waiver("artifact-code", "inconclusive")) is Decision.WAIVED
    assert decision(scanned(Verdict.INCONCLUSIVE), waiver("collapse")) is Decision.UNDECIDED
    assert decision(scanned(Verdict.INCONCLUSIVE), waiver("inconclusive")) is Decision.WAIVED
    assert decision(scanned(Verdict.FAIL), waiver("inconclusive")) is Decision.REJECTED


def test_a_waiver_is_for_one_model_and_ends_after_its_last_day():
    failed = scanned(Verdict.FAIL, "collapse")
    assert decision(failed, waiver("collapse", sha256="b" * 64)) is Decision.REJECTED
    assert decision(failed, waiver("collapse", expires=TODAY)) is Decision.WAIVED
    old = decide(failed, [waiver("collapse", expires=date(2026, 11, 20))], cleaned=False, references=5, today=TODAY)
    assert old.decision is Decision.REJECTED
    assert "gate-waiver-expired" in {finding.rule for finding in old.report.findings}


def test_a_waiver_is_never_silent():
    failed = scanned(Verdict.FAIL, "collapse")
    report = decide(failed, [waiver("collapse")], cleaned=False, references=5, today=TODAY).report
    assert report.verdict is Verdict.PASS
    assert "team-vision" in report.reasons[0] and "2026-12-31" in report.reasons[0]
    assert report.reasons[1:] == ["without waivers: fail", "because"]
    assert {"collapse", "gate-waived"} == {finding.rule for finding in report.findings}
    assert failed.verdict is Verdict.FAIL  # the scan itself is not touched


def test_files(tmp_path: Path):
    file = tmp_path / "strict.waivers.yaml"
    assert beside(tmp_path / "strict.yaml") is None
    file.write_text(TEXT)
    assert beside(tmp_path / "strict.yaml") == file
    (read,) = load_waivers(file)
    assert (read.rules, read.owner, read.expires) == (("artifact-code",), "team-vision", date(2026, 12, 31))
    file.write_text("")
    assert load_waivers(file) == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("owner: team-vision, ", ""), "number 1: owner"),
        (("expires: 2026-12-31", "expires: never"), "number 1: expires"),
        (("reason: own code", "reason: ' '"), "one line of text"),
        (("[artifact-code]", "[]"), "rules"),
        ((DIGEST, "abc"), "sha256"),
        (("owner:", "boss: me, owner:"), "boss"),
        (("waivers:", "waiver:"), "write a list"),
        (("- {", "- [{"), "not YAML"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, change: tuple[str, str], message: str):
    (tmp_path / "waivers.yaml").write_text(TEXT.replace(*change))
    with pytest.raises(ConfigError, match=message):
        load_waivers(tmp_path / "waivers.yaml")


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(ConfigError, match="No such file"):
        load_waivers(tmp_path / "waivers.yaml")
