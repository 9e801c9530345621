"""`sanitize scan`: look for a backdoor in a model of the registry; nothing is changed."""

from __future__ import annotations

from typing import Annotated

import typer

from sanitize.cli import options


def scan(
    model: options.Model,
    method: Annotated[
        str | None,
        typer.Option("--method", "-m", help="What is measured: feature-collapse (without --recipe) or decree."),
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(
            "--reference", metavar="MODEL", help="A clean model of the same architecture, to compare with. Repeatable."
        ),
    ] = None,
    recipe: options.Recipe = None,
    settings: options.Settings = None,
    data: options.Data = None,
    arch: options.Arch = None,
    normalization: options.Normalization = None,
    image_size: options.ImageSize = None,
    allow_stubbed: options.AllowStubbed = False,
    policy: options.Policy = None,
    device: options.Device = "auto",
    precision: options.Precision = "32-true",
    seed: options.Seed = 0,
    tracking_uri: options.TrackingUri = None,
    format: options.Format = "table",
    output: options.Output = None,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Look for a backdoor: what the files would do, and whether the model behaves as clean references do.

    Nothing is changed and nothing registered. Without enough references the answer is inconclusive: no number is
    suspicious by itself.
    """
    from sanitize.cli.output import check_outputs, emit, preview
    from sanitize.detection.catalogue import model_detector_named
    from sanitize.inputs import Request
    from sanitize.policies import load_policy
    from sanitize.recipes import configure
    from sanitize.scan import Scan
    from sanitize.training import Display

    check_outputs(format, output)
    if method is None and recipe is None:
        method = "feature-collapse"
    detector = configure(method, recipe=recipe, settings=settings or [], named=model_detector_named)
    job = Scan(
        detector,
        device=device,
        precision=precision,
        seed=seed,
        tracking_uri=tracking_uri,
        policy=load_policy(policy) if policy else None,
        display=Display(quiet=quiet),
    )
    request = Request(
        model=model,
        kind=None,
        data=data,
        arch=arch,
        normalization=normalization,
        image_size=image_size,
        allow_stubbed=allow_stubbed,
    )
    if dry_run:
        from sanitize.preflight import of_scan

        return preview(lambda: of_scan(job, request, reference or ()), format)
    report = job.run(request, references=reference or ())
    emit(report, format, output)
    raise typer.Exit(report.verdict.exit_code)
