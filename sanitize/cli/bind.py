"""`sanitize bind`: what the defender knows about a registered model."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from sanitize.cli import options


class Kind(StrEnum):
    """What a model gives."""

    ENCODER = "encoder"
    CLASSIFIER = "classifier"


def bind(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="models:/name")],
    kind: Annotated[Kind, typer.Option("--kind", help="What the model gives: features or logits.")] = Kind.ENCODER,
    data: options.Data = None,
    probe_data: options.ProbeData = None,
    test_data: options.TestData = None,
    trigger: options.Triggers = None,
    arch: options.Arch = None,
    normalization: options.Normalization = None,
    image_size: options.ImageSize = None,
    tracking_uri: options.TrackingUri = None,
    verbose: options.Verbose = False,
) -> None:
    """Record data, architecture, normalization and image size for a registered model; an older binding is replaced."""
    from sanitize.intake import Knowledge, bind_knowledge

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
    run_id = bind_knowledge(model, known, tracking_uri=tracking_uri)
    typer.echo(f"bound to {model} (record: run {run_id})")
