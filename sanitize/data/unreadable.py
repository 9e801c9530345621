"""Pictures that could not be decoded and were left out: which they are, and how a report tells it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sanitize.types import Finding, Severity

_NAMED = 5  # in a message
_LISTED = 1000  # in the evidence of a finding


@dataclass(frozen=True)
class Unreadable:
    """A picture that could not be decoded.

    Args:
        row: Its place in the data, after their row slice, from 0.
        name: How messages name it: a row of a file, or a file of a folder.
        reason: Why there are no pixels.
    """

    row: int
    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def first_of(items: Sequence[object]) -> str:
    """The first few, and how many more there are, for a message.

    Example:
        >>> first_of(range(7))
        '0; 1; 2; 3; 4; and 2 more'
    """
    rest = f"; and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
    return "; ".join(map(str, items[:_NAMED])) + rest


def unreadable_findings(unreadable: Sequence[Unreadable], *, total: int, source: str) -> list[Finding]:
    """One finding where pictures were left out; none else.

    Args:
        unreadable: These pictures.
        total: Of the data, with them.
        source: What the user called the data.
    """
    if not unreadable:
        return []
    return [
        Finding(
            rule="data-unreadable",
            severity=Severity.WARNING,
            message=f"{len(unreadable)} of {total} images in {source} cannot be read: {first_of(unreadable)}.",
            evidence={"count": len(unreadable), "images": [asdict(picture) for picture in unreadable[:_LISTED]]},
        )
    ]
