"""`sanitize methods`: what each defence does and needs."""

from __future__ import annotations


def methods() -> None:
    """List the defences: what each does, needs, and works on."""
    from rich.console import Console
    from rich.table import Table

    from sanitize.defenses import DEFENSES

    table = Table("method", "does", "works on", "needs", "paper", title="Defences")
    for name, defense in sorted(DEFENSES.items()):
        needs = ", ".join(sorted(defense.needs)) + f" (at least {defense.minimum_images})"
        table.add_row(name, defense.summary, ", ".join(sorted(defense.kinds)), needs, defense.paper.reference)
    Console().print(table)
