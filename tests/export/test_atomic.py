from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sanitize.errors import ExportError
from sanitize.export.atomic import replacing, write_bytes


def test_makes_missing_folders_and_respects_the_umask(tmp_path: Path):
    path = tmp_path / "a" / "b" / "file.bin"
    previous = os.umask(0o022)
    try:
        write_bytes(path, b"content")
    finally:
        os.umask(previous)
    assert path.read_bytes() == b"content"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [file.name for file in path.parent.iterdir()] == ["file.bin"]


def test_a_failure_keeps_the_old_file_and_leaves_nothing(tmp_path: Path):
    path = tmp_path / "file.bin"
    write_bytes(path, b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as draft:
        draft.write_bytes(b"half of the n")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_removes_the_folders_it_made(tmp_path: Path):
    with pytest.raises(RuntimeError), replacing(tmp_path / "a" / "b" / "file.bin"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_no_folder_is_one_clear_error(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ExportError, match=r"could not write .*Nothing was left behind"):
        write_bytes(tmp_path / "file" / "deeper.bin", b"content")


def test_a_read_only_folder_is_one_clear_error(tmp_path: Path):
    tmp_path.chmod(0o555)
    if os.access(tmp_path, os.W_OK):
        tmp_path.chmod(0o755)
        pytest.skip("this user may write into read-only folders (root)")
    with pytest.raises(ExportError, match="could not write"):
        write_bytes(tmp_path / "file.bin", b"content")
    assert list(tmp_path.iterdir()) == []
    tmp_path.chmod(0o755)


def test_a_folder_in_the_way_is_one_clear_error(tmp_path: Path):
    (tmp_path / "file.bin").mkdir()
    with pytest.raises(ExportError, match="could not write"):
        write_bytes(tmp_path / "file.bin", b"content")
    assert [file.name for file in tmp_path.iterdir()] == ["file.bin"]
