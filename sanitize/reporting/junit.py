"""The report as JUnit XML: one test case a check, and the verdict's case decides."""

from __future__ import annotations

from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from sanitize.reporting import wording
from sanitize.types import Report, Severity, Verdict


def junit(report: Report) -> str:
    """The report as a JUnit test suite.

    The case ``verdict`` fails on `fail`, and on `inconclusive` with a type of its own, so that neither reads as a pass.
    A finding of severity error is a failed case unless the verdict is `pass` (it then was found in the subject, and
    the result was judged without it). What was not measured is a skipped case with its reason.
    """
    suite = Element("testsuite", name=f"sanitize {wording.plain(report.subject.get('uri', ''))}")
    seconds = sum(report.timings.values())
    _verdict(suite, report, seconds)
    for finding in report.findings:
        case = _case(suite, finding.rule)
        message = wording.plain(finding.message)
        if finding.severity is Severity.ERROR and report.verdict is not Verdict.PASS:
            SubElement(case, "failure", type=wording.plain(finding.rule), message=message).text = message
        else:
            SubElement(case, "system-out").text = f"{finding.severity.value}: {message}"
    for title, reason in wording.unmeasured(report):
        SubElement(_case(suite, f"measure: {title}"), "skipped", message=reason)
    counts = {
        "tests": len(suite.findall("testcase")),
        "failures": len(suite.findall("testcase/failure")),
        "errors": 0,
        "skipped": len(suite.findall("testcase/skipped")),
    }
    suites = Element("testsuites", name="sanitize")
    for element in (suites, suite):
        for name, value in counts.items():
            element.set(name, str(value))
        element.set("time", f"{seconds:.3f}")
    suites.append(suite)
    ElementTree.indent(suites)
    body: str = ElementTree.tostring(suites, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n'


def _verdict(suite: Element, report: Report, seconds: float) -> None:
    case = _case(suite, "verdict", seconds)
    reasons = "\n".join(map(wording.plain, report.reasons))
    message = f"{report.verdict.value}: {wording.HEADLINES[report.verdict]}"
    if report.verdict is Verdict.PASS:
        SubElement(case, "system-out").text = f"{message}\n{reasons}"
        return
    failure = SubElement(
        case,
        "failure",
        type=f"verdict.{report.verdict.value}",
        message=message,
    )
    failure.text = reasons


def _case(suite: Element, name: str, seconds: float = 0.0) -> Element:
    return SubElement(suite, "testcase", classname="sanitize", name=wording.plain(name), time=f"{seconds:.3f}")
