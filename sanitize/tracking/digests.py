"""SHA-256 of files and folders, in a form that a third person can recompute with standard tools."""

from __future__ import annotations

import hashlib
from pathlib import Path


def sha256_of(path: Path) -> str:
    """Digest of a file's bytes, or of a folder's list of files.

    A folder's digest is that of a text with one line ``<sha256>  <relative path>`` a file, which this prints in it:
    ``find . -type f | sed 's|^./||' | LC_ALL=C sort | xargs sha256sum``.

    Args:
        path: File or folder; links in a folder are not followed and not part of the digest.

    Returns:
        64 hexadecimal digits.
    """
    if path.is_dir():
        return sha256_of_listing({name: sha256_of(path / name) for name in files_in(path)})
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_listing(digests: dict[str, str]) -> str:
    """Digest of a folder whose files have these digests.

    Args:
        digests: Relative path with forward slashes -> digest of the file.

    Example:
        >>> sha256_of_listing({})[:8]
        'e3b0c442'
    """
    ordered = sorted(digests.items(), key=lambda item: item[0].encode())
    return sha256_of_text("".join(f"{digest}  {name}\n" for name, digest in ordered))


def sha256_of_text(text: str) -> str:
    """Digest of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def files_in(folder: Path) -> list[str]:
    """Relative paths, with forward slashes, of all regular files under `folder`."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()
    )
