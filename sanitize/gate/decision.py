"""From what was found to what happens with the version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from enum import StrEnum

from sanitize.gate.waivers import INCONCLUSIVE, Waiver, about
from sanitize.types import Finding, Report, Severity, Verdict

APPROVED_ALIAS = "approved"


class Decision(StrEnum):
    """What the gate decides about a version; the tag ``sanitize.gate``."""

    APPROVED = "approved"
    WAIVED = "waived"
    CLEANED = "cleaned"
    REJECTED = "rejected"
    UNDECIDED = "undecided"

    @property
    def opens(self) -> bool:
        """Whether a version gets the alias: the examined one, or with `CLEANED` the purified one."""
        return self in (Decision.APPROVED, Decision.WAIVED, Decision.CLEANED)


@dataclass(frozen=True)
class Decided:
    """The decision and the report that says why.

    Args:
        decision: What happens.
        report: With the waivers that were used or have expired among its findings.
        waivers: Those that the decision rests on.
    """

    decision: Decision
    report: Report
    waivers: tuple[Waiver, ...] = ()


def decide(report: Report, waivers: Sequence[Waiver], *, cleaned: bool, references: int, today: date) -> Decided:
    """What follows from a scan.

    A waiver makes an approval where it covers everything that stands against the model: the rules of all findings of
    severity `error`, and ``inconclusive`` where the evidence does not suffice. The report then says pass, and begins
    with the waivers; what was found stays in it.

    Args:
        report: Of the scan.
        waivers: All that there are.
        cleaned: Whether a purified version passed.
        references: How many clean references the policy asks for.
        today: Decides which waivers have expired.
    """
    valid, expired = about(waivers, str(report.subject["sha256"]), today)
    report = replace(report, findings=[*report.findings, *(_note("gate-waiver-expired", one) for one in expired)])
    if report.verdict is Verdict.PASS:
        return Decided(Decision.APPROVED, report)
    if used := _covering(valid, _against(report, references)):
        report = replace(
            report,
            verdict=Verdict.PASS,
            reasons=[*(str(one) for one in used), f"without waivers: {report.verdict}", *report.reasons],
            findings=[*report.findings, *(_note("gate-waived", one) for one in used)],
        )
        return Decided(Decision.WAIVED, report, used)
    if cleaned:
        return Decided(Decision.CLEANED, report)
    return Decided(Decision.REJECTED if report.verdict is Verdict.FAIL else Decision.UNDECIDED, report)


def _against(report: Report, references: int) -> set[str]:
    """What a waiver must cover."""
    rules = {finding.rule for finding in report.findings if finding.severity is Severity.ERROR}
    too_few = len(report.subject.get("references", ())) < references
    return rules | ({INCONCLUSIVE} if too_few or report.verdict is Verdict.INCONCLUSIVE else set())


def _covering(waivers: Sequence[Waiver], against: set[str]) -> tuple[Waiver, ...]:
    """The waivers that together cover all of it; none where something is left."""
    used = tuple(waiver for waiver in waivers if against.intersection(waiver.rules))
    covered = {rule for waiver in used for rule in waiver.rules}
    return used if against and against <= covered else ()


def _note(rule: str, waiver: Waiver) -> Finding:
    state = "waived" if rule == "gate-waived" else "was waived until it expired"
    return Finding(
        rule=rule,
        severity=Severity.WARNING,
        message=f"{', '.join(waiver.rules)} {state}; {waiver.owner} answers for it until {waiver.expires}: "
        f"{waiver.reason}",
        evidence=waiver.model_dump(mode="json"),
    )
