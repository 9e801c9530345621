"""`sanitize encoder`: remove an unknown backdoor from an encoder in the registry."""

from __future__ import annotations

from typing import Any

import typer

from sanitize.cli import options


def encoder(
    model: options.Model,
    method: options.Defense = None,
    recipe: options.Recipe = None,
    settings: options.Settings = None,
    data: options.Data = None,
    probe_data: options.ProbeData = None,
    test_data: options.TestData = None,
    trigger: options.Triggers = None,
    arch: options.Arch = None,
    normalization: options.Normalization = None,
    image_size: options.ImageSize = None,
    allow_stubbed: options.AllowStubbed = False,
    policy: options.Policy = None,
    drill: options.Drill = None,
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
    """Remove an unknown backdoor from an encoder, register the result, export it to ONNX.

    The suspect's files are never executed. Data, architecture, normalization and image size that are left out are
    those bound to the registered model (`sanitize bind`).
    """
    from sanitize.cli.output import check_outputs, emit, preview
    from sanitize.inputs import Request
    from sanitize.policies import load_policy
    from sanitize.recipes import configure
    from sanitize.sanitizer import Sanitizer
    from sanitize.training import Display, first_process

    check_outputs(format, output)
    sanitizer = Sanitizer(
        defense=configure(method, recipe=recipe, settings=settings or []),
        device=device,
        precision=precision,
        strategy=strategy,
        devices=devices,
        num_nodes=num_nodes,
        seed=seed,
        tracking_uri=tracking_uri,
        workdir=workdir,
        resume=resume,
        policy=load_policy(policy) if policy else None,
        drill=drill,
        display=Display(quiet=quiet),
    )
    asked: dict[str, Any] = {
        "kind": "encoder",
        "data": data,
        "probe_data": probe_data,
        "test_data": test_data,
        "triggers": trigger or (),
        "arch": arch,
        "normalization": normalization,
        "image_size": image_size,
        "allow_stubbed": allow_stubbed,
    }
    if dry_run:
        from sanitize.preflight import of_purification

        return preview(lambda: of_purification(sanitizer, Request(model=model, **asked)), format)
    report = sanitizer.run(model, **asked)
    if not first_process():
        raise typer.Exit  # the first one says what there is to say
    emit(report, format, output)
    raise typer.Exit(report.verdict.exit_code)
