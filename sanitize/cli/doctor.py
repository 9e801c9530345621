"""`sanitize doctor`: is this machine set up right?"""

from __future__ import annotations

import typer

from sanitize.cli import options


def doctor(
    tracking_uri: options.TrackingUri = None,
    device: options.Device = "auto",
    verbose: options.Verbose = False,
) -> None:
    """Find the usual set-up faults: packages that do not fit, no GPU where one is asked for, an unreachable server."""
    from rich.console import Console
    from rich.table import Table

    from sanitize.diagnosis import diagnose

    checks = diagnose(tracking_uri=tracking_uri, device=device)
    table = Table("", "check", "seen", "what to do")
    for check in checks:
        table.add_row("ok" if check.ok else "fault", check.name, check.seen, check.remedy if not check.ok else "")
    Console().print(table)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)
