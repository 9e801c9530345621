"""The report as one HTML file that needs no network and runs no script."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

import jinja2

from sanitize.reporting import wording
from sanitize.types import Report

if TYPE_CHECKING:
    from sanitize.reporting.figures import Figure

_TEMPLATE = "report.html.j2"


def html(report: Report, figures: Sequence[Figure] = ()) -> str:
    """The report as a self-contained page; figures are embedded as data URIs.

    A content security policy in the page forbids scripts and every load, whatever a hostile name in the report says.
    """
    rows = wording.rows(report)
    old_head = [row for row in rows if row.key == "clean_accuracy_old_head"]
    retrained = [row for row in rows if row.key == "clean_accuracy"]
    drill, canaries = wording.drill(report)
    page = _template().render(
        report=report,
        tool=" ".join(wording.plain(report.tool[key]) for key in ("name", "version") if report.tool.get(key)),
        headline=wording.HEADLINES[report.verdict],
        limits=wording.LIMITS,
        rows=rows,
        drill=drill,
        canaries=canaries,
        canary_header=wording.DRILL_HEADER,
        unmeasured=wording.unmeasured(report),
        outputs=wording.outputs(report),
        next_commands=wording.next_commands(report),
        parameters=wording.parameters(report),
        policy=wording.facts(report.defense.get("policy") or {}),
        paper=_paper(report),
        encoder=report.subject.get("kind") == "encoder",
        refit=wording.REFIT,
        heads=[("Retrained head", retrained[0]), ("Old head", old_head[0])] if old_head and retrained else [],
        subject=wording.facts(report.subject),
        data=wording.facts(report.data),
        environment=wording.environment(report),
        timings=[(wording.output_title(stage), f"{seconds:.1f} s") for stage, seconds in report.timings.items()],
        throughput=[(wording.output_title(name), f"{value:,.0f}") for name, value in report.throughput.items()],
        figures=[(figure, base64.b64encode(figure.png).decode("ascii")) for figure in figures],
    )
    return page + "\n"


def _paper(report: Report) -> str:
    paper = report.defense.get("paper") or ""
    if isinstance(paper, dict):
        return ". ".join(wording.plain(value) for value in paper.values() if value)
    return wording.plain(paper)


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["plain"] = wording.plain
    environment.filters["percent"] = lambda share: f"{100 * max(0.0, min(1.0, share)):.1f}%"
    source = files(__package__).joinpath(_TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source)
