"""`sanitize methods`: what each defence, detector and training does and needs."""

from __future__ import annotations


def methods() -> None:
    """List the defences, detectors and trainings: what each does, needs, and works on or gives."""
    from rich.console import Console
    from rich.table import Column, Table

    from sanitize.defenses import DEFENSES, Need
    from sanitize.detection import DETECTORS
    from sanitize.detection.catalogue import MODEL_DETECTORS
    from sanitize.trainers import TRAINERS

    table = Table(Column("method", no_wrap=True), "does", "works on", "needs", "paper", title="Defences")
    for name, defense in sorted(DEFENSES.items()):
        needs = ", ".join(sorted(defense.needs))
        if Need.IMAGES in defense.needs:
            needs += f" (at least {defense.minimum_images})"
        table.add_row(name, defense.summary, ", ".join(sorted(defense.kinds)), needs, defense.paper.reference)
    Console().print(table)
    table = Table(
        Column("method", no_wrap=True), "does", "works on", "needs", "paper", title="Detectors (`sanitize scan`)"
    )
    for name, detector in sorted(MODEL_DETECTORS.items()):
        needs = f"images (at least {detector.minimum_images}), clean references"
        table.add_row(name, detector.summary, ", ".join(sorted(detector.kinds)), needs, detector.paper.reference)
    Console().print(table)
    table = Table(
        Column("method", no_wrap=True), "does", "works in", "needs", "paper", title="Detectors (`sanitize dataset`)"
    )
    for name, found in sorted(DETECTORS.items()):
        needs = f"images (at least {found.minimum_images})" + (", labels" if found.kind == "classifier" else "")
        table.add_row(name, found.summary, found.kind, needs, found.paper.reference)
    Console().print(table)
    table = Table(
        Column("method", no_wrap=True), "does", "gives", "needs", "paper", title="Trainings (`sanitize train`)"
    )
    for name, trainer in sorted(TRAINERS.items()):
        needs = "images, labels" if trainer.needs_labels else "images"
        table.add_row(name, trainer.summary, trainer.kind, needs, trainer.paper.reference)
    Console().print(table)
