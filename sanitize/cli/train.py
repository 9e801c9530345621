"""`sanitize train`: train a network from scratch and register it."""

from __future__ import annotations

from typing import Annotated

import typer

from sanitize.cli import options


def train(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Training images (Parquet, folder, npz, digits, torchvision:, URI).")
    ],
    register: Annotated[
        str, typer.Option("--register", metavar="NAME", help="Registered model that gets the new version.")
    ],
    arch: Annotated[
        str, typer.Option("--arch", metavar="NAME", help="Built-in or torchvision name, or your file.py:function.")
    ],
    normalization: Annotated[
        str, typer.Option("--normalization", metavar="NAME", help="none, half, cifar10, cifar100, imagenet.")
    ],
    image_size: Annotated[int, typer.Option("--image-size", min=4, metavar="PX", help="Side of the images.")],
    method: Annotated[str | None, typer.Option("--method", "-m", help="Training (`sanitize methods`).")] = None,
    recipe: options.Recipe = None,
    settings: options.Settings = None,
    probe_data: options.ProbeData = None,
    test_data: options.TestData = None,
    trigger: options.Triggers = None,
    encoder: Annotated[
        str | None,
        typer.Option("--encoder", metavar="MODEL", help="Features to start from, with decoupled and ssl=given."),
    ] = None,
    truth: Annotated[
        str | None,
        typer.Option("--truth", metavar="TRUTH", help="What is poisoned, to judge the filter of decoupled only."),
    ] = None,
    memory: options.Memory = 4.0,
    device: options.Device = "auto",
    precision: options.Precision = "32-true",
    strategy: options.Strategy = "auto",
    devices: options.Devices = None,
    num_nodes: options.NumNodes = None,
    seed: options.Seed = 0,
    tracking_uri: options.TrackingUri = None,
    format: options.Format = "table",
    output: options.Output = None,
    workdir: options.WorkdirOption = None,
    resume: options.Resume = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Train an encoder or a classifier from scratch, judge it, export it to ONNX, and register it.

    Data, architecture, normalization and image size are bound to the registered model, so that `sanitize encoder` or
    `sanitize classifier` can examine it without further options.
    """
    from sanitize.cli.output import check_outputs, emit, preview
    from sanitize.recipes import configure
    from sanitize.trainers import trainer_named
    from sanitize.training import Display, first_process
    from sanitize.training_inputs import TrainingRequest
    from sanitize.training_job import TrainingJob

    check_outputs(format, output)
    job = TrainingJob(
        configure(method, recipe=recipe, settings=settings or [], named=trainer_named),
        device=device,
        precision=precision,
        strategy=strategy,
        devices=devices,
        num_nodes=num_nodes,
        seed=seed,
        tracking_uri=tracking_uri,
        workdir=workdir,
        resume=resume,
        display=Display(quiet=quiet),
    )
    request = TrainingRequest(
        data=data,
        register=register,
        arch=arch,
        normalization=normalization,
        image_size=image_size,
        probe_data=probe_data,
        test_data=test_data,
        triggers=trigger or (),
        encoder=encoder,
        truth=truth,
        memory=memory,
    )
    if dry_run:
        from sanitize.preflight import of_training

        return preview(lambda: of_training(job, request), format)
    report = job.run(request)
    if not first_process():
        raise typer.Exit  # the first one says what there is to say
    emit(report, format, output)
    raise typer.Exit(report.verdict.exit_code)
