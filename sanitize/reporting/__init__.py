"""Views of a `Report`: table, JSON, SARIF, JUnit, Markdown and HTML.

`render` gives text, `write` puts it into a file whose suffix names the format. Figures are drawn by
`sanitize.reporting.figures`, which is imported on its own because matplotlib is slow to import.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sanitize.errors import ConfigError
from sanitize.export.atomic import write_bytes
from sanitize.reporting.html import html
from sanitize.reporting.junit import junit
from sanitize.reporting.markdown import description, markdown
from sanitize.reporting.sarif import sarif
from sanitize.reporting.table import table
from sanitize.types import Report, did_you_mean

if TYPE_CHECKING:
    from sanitize.reporting.figures import Figure

__all__ = ["FORMATS", "SUFFIXES", "description", "html", "junit", "markdown", "render", "sarif", "table", "write"]

_VIEWS: dict[str, Callable[[Report], str]] = {
    "table": table,
    "json": lambda report: report.to_json() + "\n",
    "sarif": sarif,
    "junit": junit,
    "markdown": markdown,
    "html": html,
}
FORMATS = tuple(_VIEWS)
SUFFIXES = {
    ".json": "json",
    ".sarif": "sarif",
    ".xml": "junit",
    ".md": "markdown",
    ".html": "html",
    ".htm": "html",
    ".txt": "table",
}


def render(report: Report, format: str, *, figures: Sequence[Figure] = (), color: bool = False) -> str:
    """The report as text, ending with a newline.

    Args:
        report: What to show.
        format: One of `FORMATS`.
        figures: Shown by ``html``; the other formats have no place for them.
        color: ANSI colours in ``table``.

    Raises:
        ConfigError: The format is unknown.

    Example:
        >>> from sanitize.types import Report, Verdict
        >>> report = Report(
        ...     tool={"name": "sanitize"}, subject={"uri": "models:/suspect/1"}, defense={"name": "bmaiu"}, data={},
        ...     verdict=Verdict.INCONCLUSIVE, reasons=["No trigger was given."],
        ... )
        >>> print(render(report, "table").splitlines()[0])
        INCONCLUSIVE  models:/suspect/1
    """
    if format not in _VIEWS:
        raise ConfigError(f"unknown report format {format!r}. {did_you_mean(format, FORMATS)}")
    if format == "html":
        return html(report, figures)
    if format == "table":
        return table(report, color=color)
    return _VIEWS[format](report)


def write(report: Report, path: Path, figures: Sequence[Figure] = ()) -> None:
    """Write the report to `path`, completely or not at all, in UTF-8.

    Args:
        report: What to show.
        path: Its suffix names the format; see `SUFFIXES`.
        figures: Shown by ``.html``.

    Raises:
        ConfigError: The suffix is unknown.
        ExportError: The file system refuses.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(
            f"the suffix of {str(path)!r} names no report format. Known: "
            f"{', '.join(f'{known} ({name})' for known, name in SUFFIXES.items())}."
        )
    text = render(report, SUFFIXES[suffix], figures=figures)
    # A lone surrogate (a file name that is not UTF-8) becomes \udcxx, which JSON reads back as the same character.
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))
