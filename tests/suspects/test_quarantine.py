"""Links, special files, sizes, and archives built to harm."""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path

import pytest

from sanitize.errors import ArtifactError, UnsafeArtifactError
from sanitize.suspects.quarantine import admit, digest


def archive(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as target:
        for name, content in members.items():
            target.writestr(name, content)
    return path


def test_admits_files_sorted(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    for name in ("b", "a", "sub/c"):
        (tmp_path / name).write_bytes(name.encode())
    archive(tmp_path / "z.pth", {"x/data.pkl": b"1", "x/data/0": b"\0" * 2_000_000})
    assert [file.relative_to(tmp_path).as_posix() for file in admit(tmp_path)] == ["a", "b", "sub/c", "z.pth"]


def test_digest_depends_on_names_and_bytes(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"1")
    first = digest(tmp_path)
    assert first == digest(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert digest(tmp_path) != first
    assert digest(tmp_path / "b") == "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX files")
def test_refuses_links_and_special_files(tmp_path: Path):
    (tmp_path / "real").write_bytes(b"1")
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(UnsafeArtifactError, match="symbolic link"):
        admit(tmp_path)
    with pytest.raises(UnsafeArtifactError, match="symbolic link"):
        admit(tmp_path / "link")
    (tmp_path / "link").unlink()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnsafeArtifactError, match="special file"):
        admit(tmp_path)


def test_refuses_missing_empty_and_oversized(tmp_path: Path):
    with pytest.raises(ArtifactError, match="does not exist"):
        admit(tmp_path / "absent")
    with pytest.raises(ArtifactError, match="no files"):
        admit(tmp_path)
    (tmp_path / "a").touch()
    with pytest.raises(ArtifactError, match="empty"):
        admit(tmp_path)
    (tmp_path / "a").write_bytes(b"\0" * 100)
    with pytest.raises(UnsafeArtifactError, match="100 bytes, more than the 99"):
        admit(tmp_path, max_bytes=99)


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "c:/evil"])
def test_refuses_member_names_that_escape(tmp_path: Path, name: str):
    archive(tmp_path / "a.pth", {name: b"1"})
    with pytest.raises(UnsafeArtifactError, match="leaves the folder"):
        admit(tmp_path)


def test_refuses_bombs(tmp_path: Path):
    archive(tmp_path / "a.pth", {"x/data/0": b"\0" * 50_000_000}, zipfile.ZIP_DEFLATED)
    with pytest.raises(UnsafeArtifactError, match="decompression bomb"):
        admit(tmp_path)
    archive(tmp_path / "a.pth", {"x/data/0": b"\0" * 4000})
    with pytest.raises(UnsafeArtifactError, match=r"declare|more than"):
        admit(tmp_path, max_bytes=3000)


def test_refuses_duplicates_prefixes_links_and_false_sizes(tmp_path: Path):
    file = tmp_path / "a.pth"
    with zipfile.ZipFile(file, "w") as target, pytest.warns(UserWarning, match="Duplicate"):
        target.writestr("x/data.pkl", b"1")
        target.writestr("x/data.pkl", b"2")
    with pytest.raises(UnsafeArtifactError, match="occurs twice"):
        admit(file)

    archive(file, {"x/data.pkl": b"1"})
    other = archive(tmp_path / "b.pth", {"x/data.pkl": b"2"})
    file.write_bytes(file.read_bytes() + other.read_bytes())  # two archives in one: readers differ in which they see
    with pytest.raises(UnsafeArtifactError, match="before the first member"):
        admit(file)

    with zipfile.ZipFile(file, "w") as target:
        info = zipfile.ZipInfo("x/link")
        info.external_attr = 0o120777 << 16
        target.writestr(info, b"/etc/passwd")
    with pytest.raises(UnsafeArtifactError, match="symbolic link"):
        admit(file)

    content = bytearray(archive(file, {"x/data/0": b"12345678"}).read_bytes())
    central = content.index(b"PK\x01\x02")
    content[central + 24 : central + 28] = struct.pack("<I", 1 << 30)
    file.write_bytes(content)
    with pytest.raises(UnsafeArtifactError, match="two sizes"):
        admit(file)


def test_refuses_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sanitize.suspects.extract.archives.MAX_MEMBERS", 10)
    archive(tmp_path / "a.pth", {f"x/{index}": b"" for index in range(11)})
    with pytest.raises(UnsafeArtifactError, match="11 members"):
        admit(tmp_path)
    monkeypatch.setattr("sanitize.suspects.extract.archives.MAX_DIRECTORY_BYTES", 100)
    with pytest.raises(UnsafeArtifactError, match="too many members"):
        admit(tmp_path)
