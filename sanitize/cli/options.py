"""Options that mean the same in every command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="models:/name/1, models:/name@alias, models:/m-..., or runs:/id/path.")
]
Defense = Annotated[str | None, typer.Option("--method", "-m", help="Defence (`sanitize methods`).")]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="Images for the defence, clean ones for most methods (Parquet, folder, npz, digits, URI).",
    ),
]
ProbeData = Annotated[
    str | None, typer.Option("--probe-data", metavar="DATA", help="Labelled images for the linear probe.")
]
TestData = Annotated[
    str | None, typer.Option("--test-data", metavar="DATA", help="Labelled images for the evaluation.")
]
Triggers = Annotated[
    list[Path] | None,
    typer.Option("--trigger", metavar="SPEC.yaml", help="A known trigger, for the evaluation only. Repeatable."),
]
Arch = Annotated[
    str | None, typer.Option("--arch", metavar="NAME", help="Built-in or torchvision name, or your file.py:function.")
]
Normalization = Annotated[
    str | None, typer.Option("--normalization", metavar="NAME", help="none, half, cifar10, cifar100, imagenet.")
]
ImageSize = Annotated[int | None, typer.Option("--image-size", min=4, metavar="PX", help="Side of the images.")]
AllowStubbed = Annotated[
    bool, typer.Option("--allow-stubbed", help="Read pickles that name unknown classes, as inert stubs.")
]
SkipUnreadable = Annotated[
    bool, typer.Option("--skip-unreadable", help="Leave out images that cannot be decoded, and name them.")
]
Recipe = Annotated[
    str | None, typer.Option("--recipe", metavar="NAME", help="Settings for a data scale (`sanitize recipes`).")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One hyperparameter. Repeatable.")
]
Policy = Annotated[Path | None, typer.Option("--policy", metavar="FILE", help="Thresholds of the verdict, as YAML.")]
Drill = Annotated[
    int | None,
    typer.Option("--drill", metavar="K", min=1, help="Plant K canaries in copies, purify each, count survivors."),
]
Memory = Annotated[
    float, typer.Option("--memory", metavar="GIB", min=0, help="Of the images; more are kept in a file of the workdir.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Precision = Annotated[str, typer.Option("--precision", help="32-true, bf16-mixed, 16-mixed.")]
Strategy = Annotated[str, typer.Option("--strategy", help="Lightning Fabric strategy.")]
Devices = Annotated[
    int | None, typer.Option("--devices", metavar="N", min=1, help="Processes a machine, one for each GPU; else one.")
]
NumNodes = Annotated[int | None, typer.Option("--num-nodes", metavar="N", min=1, help="Machines; else one.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Source of all randomness.")]
TrackingUri = Annotated[
    str | None,
    typer.Option("--tracking-uri", metavar="URI", help="MLflow; $MLFLOW_TRACKING_URI or sqlite:///mlflow.db."),
]
Format = Annotated[
    str, typer.Option("--format", metavar="FORMAT", help="What is printed: table, json, sarif, junit or markdown.")
]
Output = Annotated[
    list[Path] | None,
    typer.Option("--output", "-o", metavar="FILE", help="Also write .json .sarif .xml .md .html .txt. Repeatable."),
]
WorkdirOption = Annotated[
    Path | None, typer.Option("--workdir", metavar="DIR", help="Checkpoints and results of this job.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the interrupted job in the work directory.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything, say what would be done and written, and do nothing.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the traceback of an error.")]
