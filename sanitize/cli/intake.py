"""`sanitize intake`: an untrusted model file or data set becomes a version in the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sanitize.cli import options
from sanitize.cli.bind import Kind


def intake(
    source: Annotated[Path, typer.Argument(metavar="FILE|DATA", help="Model file, MLflow model folder, or data set.")],
    name: Annotated[str, typer.Option("--name", help="Registered model that gets the new version.")],
    kind: Annotated[Kind, typer.Option("--kind", help="What a model gives: features or logits.")] = Kind.ENCODER,
    data: options.Data = None,
    probe_data: options.ProbeData = None,
    test_data: options.TestData = None,
    trigger: options.Triggers = None,
    arch: options.Arch = None,
    normalization: options.Normalization = None,
    image_size: options.ImageSize = None,
    allow_stubbed: options.AllowStubbed = False,
    skip_unreadable: options.SkipUnreadable = False,
    tracking_uri: options.TrackingUri = None,
    verbose: options.Verbose = False,
) -> None:
    """Register an untrusted model file or data set, without executing it.

    A model is read as tensors, and rebuilt in --arch if that is given, before it is registered; what is given beside it
    is bound to the registered model.
    """
    from sanitize.intake import Knowledge, take_in
    from sanitize.reporting.wording import plain

    known = Knowledge(
        kind=kind.value,
        data=data,
        probe_data=probe_data,
        test_data=test_data,
        triggers=tuple(trigger or ()),
        arch=arch,
        normalization=normalization,
        image_size=image_size,
    )
    taken = take_in(
        source,
        name,
        known,
        allow_stubbed=allow_stubbed,
        skip_unreadable=skip_unreadable,
        tracking_uri=tracking_uri,
    )
    for finding in taken.findings:
        typer.echo(f"{finding.severity}: {plain(finding.message)}", err=True)
    typer.echo(taken.uri)
