"""`sanitize dataset`: find and remove poisoned images of a data set."""

from __future__ import annotations

from typing import Annotated

import typer

from sanitize.cli import options


def dataset(
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="Suspect images (Parquet, folder, npz, digits, torchvision:, URI)."),
    ],
    method: Annotated[str | None, typer.Option("--method", "-m", help="Detector (`sanitize methods`).")] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="A model that was trained on such data; else one is trained."),
    ] = None,
    recipe: options.Recipe = None,
    settings: options.Settings = None,
    train_settings: Annotated[
        list[str] | None,
        typer.Option("--train-set", metavar="KEY=VALUE", help="Of the training without --model. Repeatable."),
    ] = None,
    register: Annotated[
        str | None,
        typer.Option("--register", metavar="NAME", help="Registered data set for what is left; else that of DATA."),
    ] = None,
    truth: Annotated[
        str | None,
        typer.Option(
            "--truth",
            metavar="TRUTH",
            help="What is poisoned, for the evaluation only: models:/NAME/VERSION or file of a drill, or a truth.npz.",
        ),
    ] = None,
    retrain: Annotated[bool, typer.Option("--retrain", help="Train a network on what is left.")] = False,
    register_model: Annotated[
        str | None, typer.Option("--register-model", metavar="NAME", help="Registered model for --retrain.")
    ] = None,
    retrain_settings: Annotated[
        list[str] | None,
        typer.Option("--retrain-set", metavar="KEY=VALUE", help="Of the training of --retrain. Repeatable."),
    ] = None,
    test_data: options.TestData = None,
    trigger: options.Triggers = None,
    arch: options.Arch = None,
    normalization: options.Normalization = None,
    image_size: options.ImageSize = None,
    allow_stubbed: options.AllowStubbed = False,
    skip_unreadable: options.SkipUnreadable = False,
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
    """Find poisoned images, remove them where the scores show evidence, and register what is left.

    A model that was trained on the data is read as every suspect is; without one, a network is trained here. Exit code
    1: poison was found and removed. 0: a calibrated detector found nothing with the model that was given. 3: nothing
    was found, which settles nothing by itself.
    """
    from sanitize.cli.output import check_outputs, emit, preview
    from sanitize.dataset_inputs import DatasetRequest
    from sanitize.dataset_job import TRAININGS, DatasetJob
    from sanitize.detection import detector_named
    from sanitize.errors import ConfigError
    from sanitize.recipes import configure
    from sanitize.trainers import trainer_named
    from sanitize.training import Display, first_process

    check_outputs(format, output)
    if retrain != (register_model is not None):
        raise ConfigError("--retrain and --register-model NAME go together: the new model needs a place.")
    if model and train_settings:
        raise ConfigError("--train-set is about the training without --model; leave one of them out.")
    if retrain_settings and not retrain:
        raise ConfigError("--retrain-set is about --retrain; ask for it.")
    detector = configure(method, recipe=recipe, settings=settings or [], named=detector_named)
    trainer, usual = TRAININGS[detector.kind]
    given = [*(f"{name}={value}" for name, value in usual.items()), *(train_settings or [])]
    job = DatasetJob(
        detector,
        training=configure(trainer.name, settings=given, named=trainer_named, option="--train-set"),
        retraining=configure(
            trainer.name, settings=retrain_settings or [], named=trainer_named, option="--retrain-set"
        ),
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
    request = DatasetRequest(
        data=data,
        model=model,
        register=register,
        truth=truth,
        arch=arch,
        normalization=normalization,
        image_size=image_size,
        allow_stubbed=allow_stubbed,
        skip_unreadable=skip_unreadable,
        memory=memory,
        register_model=register_model,
        test_data=test_data,
        triggers=trigger or (),
    )
    if dry_run:
        from sanitize.preflight import of_dataset

        return preview(lambda: of_dataset(job, request), format)
    report = job.run(request)
    if not first_process():
        raise typer.Exit  # the first one says what there is to say
    emit(report, format, output)
    raise typer.Exit(report.verdict.exit_code)
