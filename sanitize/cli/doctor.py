"""`sanitize doctor`: is this machine set up right?"""

from __future__ import annotations

import typer

from sanitize.cli import options


def doctor(
    tracking_uri: options.TrackingUri = None,
    device: options.Device = "auto",
    verbose: options.Verbose = False,
) -> None:
    """Find the usual set-up faults: packages that do not fit, no GPU where one is asked for, an unreachable server.

    Exit code 1: there is a fault. What is only weaker than it could be, as a missing sandbox, is no fault.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from sanitize.diagnosis import diagnose

    checks = diagnose(tracking_uri=tracking_uri, device=device)
    table = Table("", "check", "seen", "what to do")
    for check in checks:
        remedy = "" if check.status == "ok" else check.remedy
        table.add_row(*map(escape, (check.status, check.name, check.seen, remedy)))
    Console().print(table)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)
