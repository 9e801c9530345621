"""`sanitize attacks`: the backdoors that `sanitize attack` can plant."""

from __future__ import annotations


def attacks() -> None:
    """List the attacks: what each does, and to what."""
    from rich.console import Console
    from rich.table import Column, Table

    from sanitize.attacks import ATTACKS, EncoderAttack

    table = Table(Column("attack", no_wrap=True), "does", "to", "paper", title="Attacks")
    for name, attack in sorted(ATTACKS.items()):
        subject = "encoder" if issubclass(attack, EncoderAttack) else "data set"
        table.add_row(name, attack.summary, subject, attack.paper.reference)
    Console().print(table)
