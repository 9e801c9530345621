"""`sanitize verify`: months later, is a cleaned version still what its report says?"""

from __future__ import annotations

import typer

from sanitize.cli import options


def verify(
    model: options.Model,
    tracking_uri: options.TrackingUri = None,
    verbose: options.Verbose = False,
) -> None:
    """Check weights, report and ONNX file of a cleaned version against their recorded digests; nothing is executed."""
    from sanitize.tracking import Store
    from sanitize.tracking import verify as check

    findings = check(Store(tracking_uri), model)
    for finding in findings:
        typer.echo(f"{finding.severity}: {finding.message}")
    if findings:
        typer.echo(f"{model}: {len(findings)} mismatch(es)")
        raise typer.Exit(1)
    typer.echo(f"{model}: weights, report and ONNX file match their recorded digests")
