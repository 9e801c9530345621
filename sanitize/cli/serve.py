"""`sanitize serve`: a gate that MLflow's registry webhooks call."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from sanitize.cli import gate as gates
from sanitize.cli import options

SECRET_VARIABLE = "SANITIZE_WEBHOOK_SECRET"


def serve(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")] = 8100,
    secret_file: Annotated[
        Path | None,
        typer.Option("--secret-file", metavar="FILE", help=f"The webhook's secret; ${SECRET_VARIABLE} when left out."),
    ] = None,
    queue: Annotated[
        Path, typer.Option("--queue", metavar="FILE", help="Deliveries that wait; survives restarts.")
    ] = Path(".sanitize/webhooks.db"),
    candidate: Annotated[
        str, typer.Option("--candidate-alias", help="A version that gets this alias is examined.")
    ] = "candidate",
    policy: options.Policy = None,
    waivers: gates.Waivers = None,
    method: gates.Method = None,
    recipe: options.Recipe = None,
    settings: options.Settings = None,
    detector: gates.Detector = "feature-collapse",
    detector_settings: gates.DetectorSettings = None,
    reference: gates.References = None,
    approve_into: gates.ApproveInto = None,
    alias: gates.Alias = "approved",
    allow_stubbed: options.AllowStubbed = False,
    device: options.Device = "auto",
    precision: options.Precision = "32-true",
    seed: options.Seed = 0,
    tracking_uri: options.TrackingUri = None,
    verbose: options.Verbose = False,
) -> None:
    """Receive MLflow's webhooks, run the gate for candidates, and raise an alarm for what was approved without it.

    Each delivery must carry a fresh, correct signature. It is kept in the queue before it is answered.
    """
    secret = read_secret(secret_file)
    from sanitize.serve.server import serve as listen

    gate_options: dict[str, Any] = {
        "policy": policy,
        "waivers": waivers,
        "method": method,
        "recipe": recipe,
        "settings": settings,
        "detector": detector,
        "detector_settings": detector_settings,
        "reference": reference,
        "approve_into": approve_into,
        "alias": alias,
        "device": device,
        "precision": precision,
        "seed": seed,
        "tracking_uri": tracking_uri,
        "quiet": True,
    }
    typer.echo(f"listening on http://{host}:{port}/webhook; queue {queue}", err=True)
    code = listen(
        queue=queue,
        secret=secret,
        host=host,
        port=port,
        options=gate_options,
        candidate=candidate,
        allow_stubbed=allow_stubbed,
    )
    raise typer.Exit(code)


def read_secret(file: Path | None) -> str:
    """The secret that MLflow signs with.

    Raises:
        ConfigError: There is none, or it is too short to keep anybody out.
    """
    from sanitize.errors import ConfigError

    try:
        secret = file.read_text(encoding="utf-8").strip() if file else os.environ.get(SECRET_VARIABLE, "")
    except OSError as error:
        raise ConfigError(f"cannot read --secret-file {file} ({error.strerror}).") from error
    if len(secret) < 16:
        raise ConfigError(
            f"the secret of the webhook has {len(secret)} characters, and needs 16 or more. Give it in --secret-file "
            f"or {SECRET_VARIABLE}; `openssl rand -hex 32` makes one."
        )
    return secret
