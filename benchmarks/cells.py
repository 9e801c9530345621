"""Cells of a published table: run in ranked order, each once, each an MLflow run."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import torch

from benchmarks.lab import Lab

EXPERIMENT = "sanitize-benchmarks"
Measure = Callable[[Lab], dict[str, float | None]]


@dataclass(frozen=True)
class Cell:
    """One cell: what it is called, what the paper found, how it is measured.

    Args:
        row: Heading of its row in the table.
        column: Heading of its column.
        measure: Lab -> metric name -> value; None where it could not be measured.
        paper: The published values, by the same names, in [0, 1].
        parts: A cell that measures several lines of the table at once names them here; its metrics are then called
            ``part/metric``.
    """

    row: str
    column: str
    measure: Measure
    paper: dict[str, float] = field(default_factory=dict)
    parts: tuple[str, ...] = ()


def run_cells(study: str, cells: Sequence[Cell], lab: Lab, *, tracking_uri: str) -> None:
    """Run the cells that have no result yet.

    Args:
        study: Name of the table.
        cells: In the order of what they tell.
        lab: Profile, folder, seed.
        tracking_uri: MLflow.
    """
    for cell in cells:
        path = result_path(study, cell, lab)
        if path.is_file():
            continue
        print(f"{study}: {cell.row} / {cell.column} (seed {lab.seed})", flush=True)
        started = time.perf_counter()
        measured = cell.measure(lab)
        record = {
            "row": cell.row,
            "column": cell.column,
            "ours": measured,
            "paper": cell.paper,
            "seed": lab.seed,
            "profile": lab.profile.name,
            "minutes": (time.perf_counter() - started) / 60,
            **circumstances(lab),
        }
        _log(study, record, tracking_uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(record, indent=2))
        partial.rename(path)
        print("  " + ", ".join(f"{name} {_shown(value)}" for name, value in measured.items()), flush=True)


def result_path(study: str, cell: Cell, lab: Lab) -> Path:
    """Where the result of a cell lies."""
    name = f"{cell.row}--{cell.column}--seed{lab.seed}".replace("/", "_").replace(" ", "-").lower()
    return lab.work / "results" / f"{study}-{lab.profile.name}" / f"{name}.json"


def circumstances(lab: Lab) -> dict[str, str]:
    """Where and with what a number was measured."""
    cuda = lab.device != "cpu" and torch.cuda.is_available()
    threads = f"{torch.get_num_threads()} thread(s) of {_processor()}"
    asked = subprocess.run(
        ["git", "describe", "--always"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    )
    return {
        "commit": asked.stdout.strip() or "unknown",
        "hardware": torch.cuda.get_device_name() if cuda else threads,
        "torch": str(torch.__version__),
        "date": date.today().isoformat(),
    }


def _processor() -> str:
    """The processor's model; Linux says it in a file only."""
    file = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", file.read_text()) if file.is_file() else []
    return names[0] if names else platform.machine()


def _log(study: str, record: dict[str, object], tracking_uri: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri)
    found = client.get_experiment_by_name(EXPERIMENT)
    experiment = found.experiment_id if found else client.create_experiment(EXPERIMENT)
    run = client.create_run(experiment, run_name=f"{study} {record['row']} {record['column']}")
    for name in ("row", "column", "seed", "profile", "commit", "hardware"):
        client.log_param(run.info.run_id, name, record[name])
    for kind in ("ours", "paper"):
        values = record[kind]
        assert isinstance(values, dict)
        for name, value in values.items():
            if value is not None:
                client.log_metric(run.info.run_id, f"{kind}/{name}", value)
    client.set_terminated(run.info.run_id)


def _shown(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"
