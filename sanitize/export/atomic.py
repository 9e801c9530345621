"""Files that are there completely or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sanitize.errors import ExportError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on a clean exit it becomes `path`, otherwise it is removed.

    Missing parent folders are made, and removed again when the write fails. What is written is flushed to the disk
    before the rename, so a crash leaves the old file or the new one.

    Args:
        path: Final place of the file.

    Raises:
        ExportError: The file system refuses: full, read-only, not a folder, not permitted.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with replacing(folder / "a.txt") as draft:
        ...     _ = draft.write_text("all of it")
        >>> [file.name for file in folder.iterdir()]
        ['a.txt']
    """
    made: list[Path] = []
    draft: Path | None = None
    try:
        made = _make_folders(path.parent)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".part", dir=path.parent)
        os.close(handle)
        draft = Path(name)
        yield draft
        draft.chmod(0o666 & ~_umask())
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException as error:
        if draft is not None:
            draft.unlink(missing_ok=True)
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            raise ExportError(
                f"could not write {path}: {error.strerror or error}. Nothing was left behind; "
                "choose a place that exists, is writable and has room."
            ) from error
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, completely or not at all.

    Raises:
        ExportError: The file system refuses.
    """
    with replacing(path) as draft:
        draft.write_bytes(content)


def _make_folders(folder: Path) -> list[Path]:
    """Make `folder` and its missing parents; the ones made, outermost first."""
    missing = [folder, *folder.parents]
    missing = [part for part in missing if not part.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _umask() -> int:
    """The process's umask, which can only be read by setting it; `mkstemp` gives 0600 regardless of it."""
    current = os.umask(0o077)
    os.umask(current)
    return current
