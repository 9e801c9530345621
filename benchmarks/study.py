"""One study from its cells to its page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.cells import Cell, run_cells
from benchmarks.lab import Lab
from benchmarks.pieces import time_limit
from benchmarks.profiles import PROFILES, Profile, profile_named
from benchmarks.tables import write_table


def of_encoders(profile: Profile) -> str:
    """Settings of a profile in a paragraph."""
    pretraining = ", ".join(f"{name} {value}" for name, value in profile.pretraining.items())
    attack = ", ".join(f"{name} {value}" for name, value in profile.attack.items())
    return (
        f"Profile `{profile.name}`: pre-training on `{profile.train}` ({pretraining}; other settings are the trainer's "
        f"defaults), test on `{profile.test}`, {profile.architecture} unless the row says otherwise, fine-tuning "
        f"attacks with {attack}. The defender has {profile.share:.0%} of the training images unless the row says "
        "otherwise, clean and (but for methods that need them) without labels. Settings of defences and detectors "
        f"beside their defaults: {profile.settings_of('encoder')}. The probe is fitted anew for each encoder on the "
        "training images with labels; the last epoch is the result. Success rates are over non-target images unless "
        "the heading says otherwise."
    )


@dataclass(frozen=True)
class Study:
    """A table.

    Args:
        name: Of the folder and the page.
        title: Heading.
        cells: Makes the cells, in ranked order.
        metrics: Metric -> heading.
        plot: Draws the results (folder of results, picture), or None.
        percent: Whether values are shares, shown in %.
        preface: Settings in a paragraph.
        profiles: Data scales, by name.
    """

    name: str
    title: str
    cells: Callable[[], list[Cell]]
    metrics: dict[str, str]
    plot: Callable[[Path, Path], None] | None = None
    percent: bool = True
    preface: Callable[[Profile], str] = of_encoders
    profiles: Mapping[str, Profile] = field(default_factory=lambda: PROFILES)


@dataclass(frozen=True)
class Circumstances:
    """How a study is run.

    Args:
        profile: Name of the data scale.
        seeds: One after the other.
        rows: Only these; all when None.
        columns: Only these; all when None.
        minutes: For all seeds together.
        work: Kept between starts.
        output: Folder of the page.
        device: As in `Engine`.
        precision: As in `Engine`.
        tracking_uri: MLflow; a store in the work folder when None.
    """

    profile: str
    seeds: Sequence[int]
    rows: Sequence[str] | None
    columns: Sequence[str] | None
    minutes: float | None
    work: Path
    output: Path
    device: str
    precision: str
    tracking_uri: str | None


def conduct(study: Study, how: Circumstances) -> None:
    """Run what has no result yet, then write the page (also when time ran out)."""
    profile = profile_named(how.profile, study.profiles)
    how.work.mkdir(parents=True, exist_ok=True)
    cells = study.cells()
    wanted = [
        cell
        for cell in cells
        if (not how.rows or cell.row in how.rows) and (not how.columns or cell.column in how.columns)
    ]
    if not wanted:
        rows, columns = sorted({cell.row for cell in cells}), sorted({cell.column for cell in cells})
        raise SystemExit(f"no such cell; rows: {', '.join(rows)}; columns: {', '.join(columns)}")
    with time_limit(how.minutes):
        for seed in how.seeds:
            lab = Lab(profile, how.work, seed=seed, device=how.device, precision=how.precision)
            run_cells(study.name, wanted, lab, tracking_uri=how.tracking_uri or f"sqlite:///{how.work / 'mlflow.db'}")
    page = how.output / f"{study.name}-{profile.name}.md"
    results = how.work / "results" / f"{study.name}-{profile.name}"
    if study.plot is not None:
        study.plot(results, page.with_suffix(".png"))
    title = f"{study.title} ({profile.name})"
    write_table(page, title, study.preface(profile), cells, results, study.metrics, percent=study.percent)
    print(f"wrote {page}")
