"""Copies into quarantine, and the arithmetic of artifact URIs."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname


def copy_plain(source: Path, destination: Path) -> None:
    """Copy a file, or the content of a folder, into the folder `destination`: links as links, without permissions.

    Raises:
        FileNotFoundError: There is no `source`.
        OSError: Something is neither file, folder nor link, or cannot be read or written.
    """
    mode = source.lstat().st_mode
    if stat.S_ISDIR(mode):
        for item in sorted(source.iterdir()):
            target = destination / item.name
            if item.is_dir() and not item.is_symlink():
                target.mkdir()
                copy_plain(item, target)
            else:
                copy_plain(item, destination)
    elif stat.S_ISLNK(mode):
        (destination / source.name).symlink_to(source.readlink())
    elif stat.S_ISREG(mode):
        shutil.copyfile(source, destination / source.name)
    else:
        raise OSError(f"{source} is a device, pipe or socket")


def local_path(uri: str) -> Path | None:
    """The path that an artifact URI means on this machine; None for other places.

    Example:
        >>> local_path("file:///srv/a%20b"), local_path("s3://bucket/a")
        (PosixPath('/srv/a b'), None)
    """
    parts = urlsplit(uri)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(url2pathname(parts.path))
    return Path(uri) if not parts.scheme or Path(uri).drive else None


def join_uri(root: str, path: str) -> str:
    """URI of `path` under `root`, which may have a query (as some object stores want).

    Example:
        >>> join_uri("s3://bucket/7/artifacts?region=eu", "model")
        's3://bucket/7/artifacts/model?region=eu'
    """
    parts = urlsplit(root)
    if not parts.scheme:
        return f"{root.rstrip('/')}/{path}"
    quoted = quote(path) if parts.scheme == "file" else path
    return parts._replace(path=f"{parts.path.rstrip('/')}/{quoted}").geturl()
