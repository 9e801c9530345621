"""Zip archives from strangers: refuse what is built to harm the reader, before anything is unpacked."""

from __future__ import annotations

import stat
import struct
import zipfile
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import IO

MAX_MEMBERS = 50_000
MAX_DIRECTORY_BYTES = 32 << 20
MAX_RATIO = 100
"""Highest plausible deflate ratio of weights, JSON and code; a bomb reaches 1000."""
SMALL = 1 << 20
"""Below this many bytes a high ratio is harmless."""
_LOCAL_HEADER = 30  # bytes, without name and extra field
_END = b"PK\x05\x06"
_END_64 = b"PK\x06\x06"


class ArchiveError(Exception):
    """The archive is corrupt, or built to harm whoever unpacks it; `hostile` tells which."""

    def __init__(self, message: str, *, hostile: bool = False) -> None:
        super().__init__(message)
        self.hostile = hostile


def is_zip(path: Path) -> bool:
    """Whether the file starts like a zip archive."""
    with path.open("rb") as stream:
        return stream.read(4) in (b"PK\x03\x04", _END)


def open_archive(source: Path | IO[bytes], *, max_bytes: int) -> zipfile.ZipFile:
    """Open a zip archive after checking its directory.

    Args:
        source: A file, or a seekable stream (an archive inside an archive).
        max_bytes: Highest sum of declared sizes.

    Raises:
        ArchiveError: It is no zip archive, or has too many members, names that leave the folder, links, duplicate or
            encrypted members, declared sizes above `max_bytes`, or an absurd compression ratio.
    """
    try:
        if isinstance(source, Path):
            with source.open("rb") as stream:
                _check_directory_size(stream)
        else:
            _check_directory_size(source)
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, OSError, ValueError, struct.error, NotImplementedError) as error:
        raise ArchiveError(f"not a readable zip archive ({error}); it is corrupt or was cut short") from error
    try:
        _check_members(archive, max_bytes)
    except ArchiveError:
        archive.close()
        raise
    return archive


def read_member(archive: zipfile.ZipFile, name: str, *, max_bytes: int) -> bytes:
    """The content of one member, checksum verified.

    Raises:
        ArchiveError: It is missing, larger than `max_bytes`, or corrupt.
    """
    try:
        info = archive.getinfo(name)
        if info.file_size > max_bytes:
            raise ArchiveError(f"{name} declares {info.file_size:,} bytes, more than the {max_bytes:,} allowed here")
        return archive.read(info)
    except KeyError as error:
        raise ArchiveError(f"{name} is missing in the archive") from error
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise ArchiveError(f"{name} cannot be read ({error}); the archive is corrupt") from error


def _check_directory_size(stream: IO[bytes]) -> None:
    # zipfile reads the whole directory into memory, so its declared size is looked at first.
    size = stream.seek(0, 2)
    stream.seek(max(0, size - 65_557))
    tail = stream.read()
    position = tail.rfind(_END)
    if position < 0:
        raise zipfile.BadZipFile("no end of directory")
    directory: int = struct.unpack_from("<I", tail, position + 12)[0]
    if directory == 0xFFFFFFFF:
        large = tail.rfind(_END_64)
        directory = struct.unpack_from("<Q", tail, large + 40)[0] if large >= 0 else directory
    if directory > MAX_DIRECTORY_BYTES:
        raise ArchiveError(f"its directory takes {directory:,} bytes: too many members", hostile=True)
    stream.seek(0)


def _check_members(archive: zipfile.ZipFile, max_bytes: int) -> None:
    members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise ArchiveError(f"{len(members):,} members, more than {MAX_MEMBERS:,}", hostile=True)
    if members and min(info.header_offset for info in members) != 0:
        raise ArchiveError("bytes before the first member: other readers may see another archive", hostile=True)
    seen: set[str] = set()
    for info in members:
        name = info.filename
        parts = PurePosixPath(name).parts
        if not parts:
            raise ArchiveError(f"member {name!r} has no name", hostile=True)
        if name.startswith("/") or ".." in parts or "\\" in name or ":" in parts[0] or "\x00" in info.orig_filename:
            raise ArchiveError(f"member name {name!r} leaves the folder", hostile=True)
        if name in seen:
            raise ArchiveError(f"member {name!r} occurs twice: readers may differ in which they take", hostile=True)
        seen.add(name)
        if stat.S_ISLNK(info.external_attr >> 16):
            raise ArchiveError(f"member {name!r} is a symbolic link", hostile=True)
        if info.flag_bits & 0x1:
            raise ArchiveError(f"member {name!r} is encrypted", hostile=True)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ArchiveError(f"member {name!r} uses a compression that weights files do not use", hostile=True)
        if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
            raise ArchiveError(f"member {name!r} is stored, but declares two sizes", hostile=True)
        if info.file_size > SMALL and info.file_size > MAX_RATIO * max(1, info.compress_size):
            raise ArchiveError(
                f"member {name!r} declares {info.file_size:,} bytes from {info.compress_size:,}: a decompression bomb",
                hostile=True,
            )
    ordered = sorted(members, key=lambda info: info.header_offset)
    for info, after in pairwise(ordered):
        if info.header_offset + _LOCAL_HEADER + info.compress_size > after.header_offset:
            raise ArchiveError(f"members {info.filename!r} and {after.filename!r} overlap: a bomb", hostile=True)
    total = sum(info.file_size for info in members)
    if total > max_bytes:
        raise ArchiveError(f"its members declare {total:,} bytes, more than the {max_bytes:,} allowed", hostile=True)
