"""The report for a terminal: verdict and reasons first, 80 columns, colour only when asked."""

from __future__ import annotations

import io
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sanitize.reporting import wording
from sanitize.types import Report, Severity, Verdict

WIDTH = 80  # columns
_VERDICT_STYLES = {Verdict.PASS: "bold green", Verdict.FAIL: "bold red", Verdict.INCONCLUSIVE: "bold yellow"}
_SEVERITY_STYLES = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "dim"}


def table(report: Report, *, color: bool = False) -> str:
    """The report as text that fits 80 columns; links and commands are never broken, so that they can be copied.

    Args:
        report: What to show.
        color: ANSI colours; without them the text holds no escape sequence.
    """
    page = io.StringIO()
    depth: Literal["standard"] | None = "standard" if color else None
    console = Console(
        file=page,
        width=WIDTH,
        color_system=depth,
        force_terminal=color,
        no_color=not color,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
    _verdict(console, report)
    _measures(console, report)
    _drill(console, report)
    _findings(console, report)
    _outputs(console, report)
    lines = page.getvalue().split("\n")
    return "\n".join(line.rstrip() for line in lines).rstrip("\n") + "\n"


def _verdict(console: Console, report: Report) -> None:
    subject = wording.plain(report.subject.get("uri", ""))
    title = Text(report.verdict.value.upper(), style=_VERDICT_STYLES[report.verdict])
    console.print(title.append(f"  {subject}", style="not bold default"), soft_wrap=True)
    console.print(Text(wording.HEADLINES[report.verdict]))
    _bullets(console, report.reasons)
    method = wording.plain(report.defense.get("name", ""))
    model = " ".join(wording.plain(report.subject[key]) for key in ("kind", "architecture") if report.subject.get(key))
    about = [part for part in (f"method {method}" if method else "", model, f"seed {report.seed}") if part]
    console.print(Text(", ".join(about), style="dim"))


def _measures(console: Console, report: Report) -> None:
    rows = wording.rows(report)
    if rows:
        grid = _grid()
        grid.add_column("Measure", ratio=1, overflow="fold")
        for name in ("Before", "After", "Change"):
            grid.add_column(name, justify="right", no_wrap=True)
        for row in rows:
            grid.add_row(*map(Text, (row.title, row.before, row.after, row.change)))
        console.print()
        console.print(grid)
    missing = wording.unmeasured(report)
    if missing:
        console.print(Text("Not measured", style="bold"))
        _bullets(console, [f"{title}: {reason}" for title, reason in missing])
    if report.subject.get("kind") == "encoder" and report.outputs.get("model_uri"):
        console.print(Text(wording.REFIT, style="dim"))


def _drill(console: Console, report: Report) -> None:
    sentences, lines = wording.drill(report)
    if not lines:
        return
    grid = _grid()
    canary, *numbers, outcome = wording.DRILL_HEADER
    grid.add_column(canary, ratio=1, overflow="fold", min_width=20)
    for name in numbers:
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column(outcome, overflow="fold", max_width=16)
    for line in lines:
        grid.add_row(*map(Text, line))
    console.print()
    console.print(grid)
    for sentence in sentences:
        console.print(Text(sentence))


def _findings(console: Console, report: Report) -> None:
    if not report.findings:
        return
    grid = _grid()
    grid.add_column("Severity", no_wrap=True)
    grid.add_column("Finding", overflow="fold", max_width=28)
    grid.add_column("What was found", ratio=1, overflow="fold")
    for finding in report.findings:
        severity = Text(finding.severity.value, style=_SEVERITY_STYLES[finding.severity])
        grid.add_row(severity, Text(wording.plain(finding.rule)), Text(wording.plain(finding.message)))
    console.print()
    console.print(grid)


def _outputs(console: Console, report: Report) -> None:
    lines = wording.outputs(report)
    if lines:
        console.print()
    indent = min(max((len(title) for title, _ in lines), default=0), 24) + 2
    for title, value in lines:
        console.print(Text(f"{title}  ".ljust(indent), style="bold").append(value, style="not bold"), soft_wrap=True)
    commands = wording.next_commands(report)
    if commands:
        console.print()
        console.print(Text("Next", style="bold"))
    for command in commands:
        console.print(Text(f"  {command}"), soft_wrap=True)


def _grid() -> Table:
    return Table(box=box.HORIZONTALS, expand=True, show_edge=True, pad_edge=False, header_style="bold")


def _bullets(console: Console, items: list[str]) -> None:
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=1)
    grid.add_column(overflow="fold")
    for item in items:
        grid.add_row("-", Text(wording.plain(item)))
    console.print(grid)
