"""The first look at a downloaded artifact: links, special files, sizes and archives, before any of it is read."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from sanitize.errors import ArtifactError, UnsafeArtifactError
from sanitize.suspects.extract.archives import ArchiveError, is_zip, open_archive

MAX_BYTES = 16 << 30
MAX_FILES = 10_000
MAX_DEPTH = 16


def admit(path: Path, *, max_bytes: int = MAX_BYTES) -> list[Path]:
    """Check a downloaded file or folder; nothing is unpacked, parsed or executed.

    Args:
        path: A file, or a folder such as an MLflow model.
        max_bytes: Highest sum of file sizes, and of the sizes that an archive in it declares.

    Returns:
        The files in it, sorted.

    Raises:
        ArtifactError: It is missing, empty, unreadable, or an archive in it is corrupt.
        UnsafeArtifactError: It has links, special files, paths that leave the folder, too many or too large files,
            or an archive that is built to harm its reader.
    """
    if not os.path.lexists(path):
        raise ArtifactError(f"{path} does not exist.")
    files = sorted(_walk(path, path, 0))
    if not files:
        raise ArtifactError(f"{path} holds no files. Was the model logged completely?")
    total = sum(file.stat().st_size for file in files)
    if total == 0:
        raise ArtifactError(f"{path} is empty (0 bytes).")
    if total > max_bytes:
        raise UnsafeArtifactError(f"{path} has {total:,} bytes, more than the {max_bytes:,} that are admitted.")
    for file in files:
        try:
            if is_zip(file):
                open_archive(file, max_bytes=max_bytes).close()
        except ArchiveError as error:
            raise (UnsafeArtifactError if error.hostile else ArtifactError)(f"{file} refused: {error}.") from error
        except OSError as error:
            raise ArtifactError(f"{file} cannot be read: {error}.") from error
    return files


def digest(path: Path) -> str:
    """SHA-256 (hexadecimal) of a file's bytes; of a folder: of its sorted relative paths, sizes and bytes."""
    total = hashlib.sha256()
    files = [path] if path.is_file() else sorted(_walk(path, path, 0))
    for file in files:
        if file != path:
            total.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                total.update(block)
    return total.hexdigest()


def _walk(path: Path, root: Path, depth: int) -> list[Path]:
    if not path.name.isprintable():
        raise UnsafeArtifactError(f"{path.parent} has a file with control characters in its name: {path.name!r}.")
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        raise UnsafeArtifactError(
            f"{path} is a symbolic link (to {path.readlink()}). Links are not followed: give the file itself."
        )
    if stat.S_ISREG(mode):
        return [path]
    if not stat.S_ISDIR(mode):
        raise UnsafeArtifactError(f"{path} is a special file (device, pipe or socket), not data.")
    if depth > MAX_DEPTH:
        raise UnsafeArtifactError(f"{path} is nested deeper than {MAX_DEPTH} folders.")
    files: list[Path] = []
    try:
        entries = list(path.iterdir())
    except OSError as error:
        raise ArtifactError(f"{path} cannot be listed: {error}.") from error
    for entry in entries:
        if not entry.resolve().is_relative_to(root.resolve()) and not entry.is_symlink():
            raise UnsafeArtifactError(f"{entry} leads out of {root}.")
        files += _walk(entry, root, depth + 1)
        if len(files) > MAX_FILES:
            raise UnsafeArtifactError(f"{root} has more than {MAX_FILES:,} files.")
    return files
