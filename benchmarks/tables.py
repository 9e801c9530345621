"""Results of cells as a Markdown page: paper beside ours, with everything that is needed to read the numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.cells import Cell

ESTABLISHED = 0.5


def write_table(
    path: Path,
    title: str,
    preface: str,
    cells: Sequence[Cell],
    results: Path,
    metrics: dict[str, str],
    *,
    percent: bool,
) -> None:
    """Write the page of a study.

    Args:
        path: The page.
        title: Heading.
        preface: What was done, in a paragraph.
        cells: All cells, in the order of the page.
        results: Folder with one JSON a cell and seed.
        metrics: Metric name -> heading.
        percent: Whether values are shares, shown in %.
    """
    records = [json.loads(file.read_text()) for file in sorted(results.glob("*.json"))]
    lines = [f"# {title}", "", preface, ""]
    if records:
        lines += [_circumstances(records), ""]
    headings = " / ".join(metrics.values())
    lines += [
        f"Values are {headings}{' in %' if percent else ''}, means over seeds where there are several; "
        "n. m.: not measured.",
        "",
        "| row | column | paper | ours | seeds | minutes |",
        "|---|---|---|---|---|---|",
    ]
    for cell in cells:
        found = [record for record in records if (record["row"], record["column"]) == (cell.row, cell.column)]
        for part in cell.parts or ("",):
            ours = [_part(record["ours"], part) for record in found]
            paper = _part(cell.paper, part)
            lines.append(
                f"| {part or cell.row} | {cell.column} | {_values([paper], metrics, percent) if paper else '-'} "
                f"| {_values(ours, metrics, percent) + _doubt(found) if ours else 'not run'} "
                f"| {', '.join(str(seed) for seed in sorted(record['seed'] for record in found)) or '-'} "
                f"| {sum(record['minutes'] for record in found):.1f} |"
            )
    lines += [
        "",
        "Minutes are the sum over seeds of what the cell itself took: the first cell of a row contains the training of "
        "its suspect, the others take it from the work folder.",
        "",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))


def _values(measured: Sequence[dict[str, float | None]], metrics: dict[str, str], percent: bool) -> str:
    shown = []
    for name in metrics:
        values = [value for one in measured if (value := one.get(name)) is not None]
        text = "n. m."
        if values:
            text = f"{100 * mean(values):.1f}" if percent else f"{mean(values):.3f}"
        shown.append(text)
    return " / ".join(shown)


def _part(values: Mapping[str, float | None], part: str) -> dict[str, float | None]:
    if not part:
        return dict(values)
    return {name.removeprefix(f"{part}/"): value for name, value in values.items() if name.startswith(f"{part}/")}


def _doubt(records: Sequence[dict[str, Any]]) -> str:
    """An attack that did not take on the suspect shows nothing by being absent later."""
    rates = [rate for record in records if (rate := record["ours"].get("suspect_attack_success_rate")) is not None]
    return " (attack not established)" if rates and mean(rates) < ESTABLISHED else ""


def _circumstances(records: Sequence[dict[str, Any]]) -> str:
    def every(name: str) -> str:
        return ", ".join(sorted({record[name] for record in records}))

    return f"Measured {every('date')} on {every('hardware')}; torch {every('torch')}; commit {every('commit')}."
