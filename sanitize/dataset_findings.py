"""What a data-set job found, one observation each: unreadable images, poisoned ones, classes that are lost."""

from __future__ import annotations

from collections.abc import Iterator

from sanitize.data import ImageSet
from sanitize.data.unreadable import unreadable_findings
from sanitize.detection import Split
from sanitize.types import Finding, Severity


def data_findings(data: ImageSet, split: Split) -> Iterator[Finding]:
    """What was found, with counts a class; images that were left out; and classes of which nothing is left.

    Args:
        data: The images.
        split: The detector's decision on them.
    """
    total = len(data) + len(data.unreadable)
    yield from unreadable_findings(data.unreadable, total=total, source=data.uri)
    counts = {name: dict.fromkeys(split.counts, 0) for name in _class_names(data)}
    groups = {name: getattr(split, name) for name in split.counts}
    if data.labels is not None:
        names = list(counts)
        for group, chosen in groups.items():
            for label in data.labels[chosen].tolist():
                counts[names[label]][group] += 1
    yield Finding(
        rule="data-poisoned" if split.evidence else "data-no-evidence",
        severity=Severity.ERROR if split.evidence else Severity.NOTE,
        message=f"{split.reason[:1].upper()}{split.reason[1:]}.",
        evidence={"counts": split.counts, "classes": counts},
    )
    if split.doubt and not split.evidence:
        yield Finding(
            rule="data-network-suspicious",
            severity=Severity.WARNING,
            message=f"{split.doubt[:1].upper()}{split.doubt[1:]}.",
            evidence=dict(split.numbers),
        )
    for name, found in counts.items():
        if found["poisoned"] and found["poisoned"] == sum(found.values()):
            yield Finding(
                rule="data-class-lost",
                severity=Severity.WARNING,
                message=f"All {found['poisoned']} images of class {name} were removed.",
                evidence={"class": name},
            )


def _class_names(data: ImageSet) -> list[str]:
    if data.labels is None:
        return []
    return list(data.class_names or map(str, range(int(data.labels.max()) + 1)))
