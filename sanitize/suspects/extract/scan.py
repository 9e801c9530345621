"""Looks into every file of an artifact for pickles, in archives too, and names what they would import."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from .archives import ArchiveError, open_archive, read_member
from .machine import Machine
from .records import MachineError

PICKLE_SUFFIXES = frozenset({".pkl", ".pickle", ".p", ".pt", ".pth", ".ckpt", ".bin", ".joblib", ".dill", ".pck"})
MAX_PICKLE_BYTES = 256 << 20
MAX_BLIND_BYTES = 16 << 20
"""Files with neither a pickle's first bytes nor its suffix are tried up to this size."""
MAX_DEPTH = 3
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")


@dataclass
class Scan:
    """What the pickles of an artifact would import.

    Attributes:
        globals: Where (``file!member`` inside archives) -> names.
        broken: Where -> why a pickle could be followed only in part.
        opaque: Compressed files that were not looked into.
    """

    globals: dict[str, list[str]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    opaque: list[str] = field(default_factory=list)


def scan_file(path: Path, where: str, scan: Scan, *, max_bytes: int) -> None:
    """Enter what the pickles in one file import into `scan`."""
    with path.open("rb") as stream:
        head = stream.read(8)
        if head[:2] == b"PK":
            _scan_archive(path, where, scan, max_bytes, 0)
        elif head.startswith(COMPRESSED) or (head[:1] == b"\x78" and path.suffix in PICKLE_SUFFIXES):
            scan.opaque.append(where)
        else:
            stream.seek(0)
            _scan_pickles(stream, where, scan, blind=path.stat().st_size <= MAX_BLIND_BYTES)


def _scan_archive(source: Path | IO[bytes], where: str, scan: Scan, max_bytes: int, depth: int) -> None:
    try:
        with open_archive(source, max_bytes=max_bytes) as archive:
            for info in archive.infolist():
                name = f"{where}!{info.filename}"
                with archive.open(info) as stream:
                    head = stream.read(4)
                nested = head[:2] == b"PK"
                if not nested and not _looks_pickled(head, info.filename):
                    continue
                if depth >= MAX_DEPTH:
                    scan.broken[name] = "archives inside archives, nested too deep to look into"
                    continue
                content = io.BytesIO(read_member(archive, info.filename, max_bytes=MAX_PICKLE_BYTES))
                if nested:
                    _scan_archive(content, name, scan, max_bytes, depth + 1)
                else:
                    _scan_pickles(content, name, scan, blind=False)
    except ArchiveError as error:
        scan.broken[where] = str(error)


def _looks_pickled(head: bytes, name: str) -> bool:
    leaf = name.rpartition("/")[2]
    suffix = "." + leaf.rpartition(".")[2]
    protocol = head[:1] == b"\x80" and head[1:2] <= b"\x05"
    return protocol or suffix in PICKLE_SUFFIXES or leaf.startswith(("custom_obj", "opaque_obj"))


def _scan_pickles(stream: IO[bytes], where: str, scan: Scan, *, blind: bool) -> None:
    # A file may hold several pickles in a row (torch's legacy format does).
    head = stream.read(4)
    stream.seek(0)
    known = _looks_pickled(head, where)
    if not known and not blind:
        return
    found: set[str] = set()
    while True:
        machine = Machine(stream)
        try:
            machine.run()
        except MachineError as error:
            if known and machine.globals:
                scan.broken[where] = str(error)
                found |= machine.globals
            break
        if not machine.globals and not known:
            break
        found |= machine.globals
        if stream.read(1) == b"":
            break
        stream.seek(-1, 1)
    if found:
        scan.globals[where] = sorted(found)
