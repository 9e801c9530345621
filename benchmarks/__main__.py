"""`python -m benchmarks STUDY`: run a study (or the next piece of it) and write its page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from benchmarks.study import Study

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
RESULTS = Path(__file__).parent.parent / "docs" / "results"

ProfileName = Annotated[str, typer.Option("--profile", help="paper (a GPU), small (two CPU cores) or digits.")]
Seeds = Annotated[list[int] | None, typer.Option("--seed", help="Repeatable.")]
Rows = Annotated[list[str] | None, typer.Option("--row", help="Only these rows of the table. Repeatable.")]
Columns = Annotated[list[str] | None, typer.Option("--column", help="Only these columns. Repeatable.")]
Minutes = Annotated[float | None, typer.Option("--minutes", help="Stop after so many; the next start continues.")]
Work = Annotated[Path, typer.Option("--work", help="Networks, checkpoints and results; kept between starts.")]
Output = Annotated[Path, typer.Option("--output", help="Folder of the page.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
Precision = Annotated[str, typer.Option("--precision", help="32-true or bf16-mixed.")]
TrackingUri = Annotated[str | None, typer.Option("--tracking-uri", help="MLflow; a store in --work if left out.")]
WORK = Path("benchmark-work")


@app.command()
def bmaiu(
    table: Annotated[str, typer.Option("--table", help="3 to 8, u (loss weights) or motivation (1 and 2).")],
    profile: ProfileName = "small",
    seed: Seeds = None,
    row: Rows = None,
    column: Columns = None,
    minutes: Minutes = None,
    work: Work = WORK,
    output: Output = RESULTS,
    device: Device = "auto",
    precision: Precision = "32-true",
    tracking_uri: TrackingUri = None,
) -> None:
    """The tables of the BMAIU paper."""
    from benchmarks.bmaiu import TABLES
    from benchmarks.study import Circumstances, conduct

    conduct(
        _chosen(TABLES, "table", table),
        Circumstances(profile, seed or [0], row, column, minutes, work, output, device, precision, tracking_uri),
    )


@app.command()
def uau(
    part: Annotated[str, typer.Option("--part", help="triggers, attacks, ablation or adaptive.")] = "triggers",
    profile: ProfileName = "small",
    seed: Seeds = None,
    row: Rows = None,
    column: Columns = None,
    minutes: Minutes = None,
    work: Work = WORK,
    output: Output = RESULTS,
    device: Device = "auto",
    precision: Precision = "32-true",
    tracking_uri: TrackingUri = None,
) -> None:
    """UAU beside BMAIU and others."""
    from benchmarks.study import Circumstances, conduct
    from benchmarks.uau import PARTS

    conduct(
        _chosen(PARTS, "part", part),
        Circumstances(profile, seed or [0, 1], row, column, minutes, work, output, device, precision, tracking_uri),
    )


@app.command()
def classifiers(
    part: Annotated[
        str,
        typer.Option("--part", help="purification, samples (FCT beside other scores), ablation, cifar100, imagenette."),
    ] = "purification",
    profile: ProfileName = "small",
    seed: Seeds = None,
    row: Rows = None,
    column: Columns = None,
    minutes: Minutes = None,
    work: Work = WORK,
    output: Output = RESULTS,
    device: Device = "auto",
    precision: Precision = "32-true",
    tracking_uri: TrackingUri = None,
) -> None:
    """Purifications of classifiers, D-ST, and FCT."""
    from benchmarks import classifier_ablation, classifier_data
    from benchmarks import classifiers as of_cifar10
    from benchmarks.study import Circumstances, conduct

    conduct(
        _chosen(
            of_cifar10.PARTS | {"ablation": classifier_ablation.STUDY} | classifier_data.PARTS,
            "part",
            part,
        ),
        Circumstances(profile, seed or [0], row, column, minutes, work, output, device, precision, tracking_uri),
    )


@app.command()
def detectors(
    part: Annotated[str, typer.Option("--part", help="encoders or classifiers (Neural Cleanse).")] = "encoders",
    profile: ProfileName = "digits",
    seed: Seeds = None,
    row: Rows = None,
    column: Columns = None,
    minutes: Minutes = None,
    work: Work = WORK,
    output: Output = RESULTS,
    device: Device = "auto",
    precision: Precision = "32-true",
    tracking_uri: TrackingUri = None,
) -> None:
    """Trigger-free scores of clean and backdoored encoders or classifiers, and their ROC."""
    from benchmarks import classifier_detectors
    from benchmarks import detectors as encoder_detectors
    from benchmarks.study import Circumstances, conduct

    conduct(
        _chosen({"encoders": encoder_detectors.STUDY, "classifiers": classifier_detectors.STUDY}, "part", part),
        Circumstances(
            profile, seed or list(range(10)), row, column, minutes, work, output, device, precision, tracking_uri
        ),
    )


@app.command()
def decoupled(
    profile: ProfileName = "small",
    seed: Seeds = None,
    row: Rows = None,
    column: Columns = None,
    minutes: Minutes = None,
    work: Work = WORK,
    output: Output = RESULTS,
    device: Device = "auto",
    precision: Precision = "32-true",
    tracking_uri: TrackingUri = None,
) -> None:
    """Decoupled training, its ablation, and the separation of the losses."""
    from benchmarks.decoupled import conduct
    from benchmarks.study import Circumstances

    conduct(Circumstances(profile, seed or [0], row, column, minutes, work, output, device, precision, tracking_uri))


@app.command()
def poisoncam(
    part: Annotated[
        str, typer.Option("--part", help="detection, filters (training on the rest) or epochs.")
    ] = "detection",
    profile: ProfileName = "small",
    seed: Seeds = None,
    row: Rows = None,
    column: Columns = None,
    minutes: Minutes = None,
    work: Work = WORK,
    output: Output = RESULTS,
    device: Device = "auto",
    precision: Precision = "32-true",
    tracking_uri: TrackingUri = None,
) -> None:
    """PoisonCAM and PatchSearch: detection of poisoned images without labels, ablations, and training on the rest."""
    from benchmarks import poisoncam, poisoned_training
    from benchmarks.study import Circumstances, conduct

    conduct(
        _chosen({"detection": poisoncam.STUDY} | poisoned_training.PARTS, "part", part),
        Circumstances(profile, seed or [0], row, column, minutes, work, output, device, precision, tracking_uri),
    )


@app.command()
def shards(
    action: Annotated[str, typer.Argument(help="pack or unpack.")],
    work: Work = WORK,
    folder: Annotated[Path, typer.Option("--folder", help="Of the shards.")] = Path("benchmark-shards"),
    half: Annotated[bool, typer.Option("--half", help="Weights and optimizer states as fp16.")] = False,
) -> None:
    """Carry the work folder between machines as files of at most 15 MiB."""
    from benchmarks.shards import pack, unpack

    if action == "pack":
        for path in pack(work, folder, half=half):
            typer.echo(path)
    elif action == "unpack":
        unpack(folder, work)
    else:
        raise typer.BadParameter("pack or unpack")


def _chosen(known: dict[str, Study], what: str, name: str) -> Study:
    if name not in known:
        raise typer.BadParameter(f"unknown {what} {name!r}; known are {', '.join(known)}.")
    return known[name]


if __name__ == "__main__":
    app()
