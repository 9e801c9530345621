"""The child process: what it may not do, and what happens when it is stopped."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest
import torch

from sanitize.errors import ArtifactError
from sanitize.suspects import isolation
from sanitize.suspects.readers import read_tensors

PROBE = """
import json, os, pathlib, socket, sys
found = {"missing": []}
for name, action in {
    "write": lambda: pathlib.Path(HOME, "escaped").write_text("x"),
    "network": lambda: socket.create_connection(("127.0.0.1", PORT), 2),
}.items():
    try:
        action()
        found[name] = "worked"
    except OSError as error:
        found[name] = type(error).__name__
found["environment"] = sorted(os.environ)
pathlib.Path(sys.argv[2], "found.json").write_text(json.dumps(found))
"""


@pytest.mark.skipif(isolation.bubblewrap() is None, reason="bubblewrap does not work here")
def test_no_network_no_writing_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        script = tmp_path / "probe.py"
        port = server.getsockname()[1]
        script.write_text(PROBE.replace("HOME", repr(str(tmp_path))).replace("PORT", str(port)))
        monkeypatch.setattr(isolation, "SCRIPT", script)
        monkeypatch.setenv("SECRET", "x")
        (tmp_path / "out").mkdir()
        found = isolation.run_extraction({"root": "probe", "seconds": 20}, tmp_path / "out")
    assert found["write"] != "worked"
    assert found["network"] != "worked"
    assert set(found["environment"]) <= {"LC_ALL", "PWD"}
    assert not (tmp_path / "escaped").exists()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no /dev/shm")
def test_files_in_shared_memory_are_read(monkeypatch: pytest.MonkeyPatch):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        torch.save({"w": torch.ones(2)}, Path(folder) / "model.pth")
        monkeypatch.setattr(tempfile, "tempdir", folder)
        assert torch.equal(read_tensors(Path(folder) / "model.pth").state["w"], torch.ones(2))


@pytest.mark.parametrize(
    ("code", "reason"),
    [("import time; time.sleep(60)", "stopped after 2 s"), ("raise SystemExit('gone')", "ended with code 1 .gone")],
)
def test_a_child_that_hangs_or_dies_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, reason: str
):
    script = tmp_path / "probe.py"
    script.write_text(code)
    monkeypatch.setattr(isolation, "SCRIPT", script)
    (tmp_path / "out").mkdir()
    with pytest.raises(ArtifactError, match=reason):
        isolation.run_extraction({"root": "probe", "seconds": 1}, tmp_path / "out")


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux")
def test_memory_hungry_pickle_is_stopped(tmp_path: Path):
    # LONG4 with a declared size of 2 GiB, and nesting beyond any limit
    (tmp_path / "big.pkl").write_bytes(b"\x80\x02\x8b\xff\xff\xff\x7f" + b"\0" * 100)
    (tmp_path / "deep.pkl").write_bytes(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")
    for name in ("big.pkl", "deep.pkl"):
        with pytest.raises(ArtifactError):
            read_tensors(tmp_path / name)


def test_deeply_nested_checkpoint_is_refused(tmp_path: Path):
    value = {"w": torch.rand(2), "b": torch.rand(2)}
    for _ in range(80):
        value = {"x": value, "w": torch.rand(1)}
    torch.save(value, tmp_path / "model.pth")
    with pytest.raises(ArtifactError, match="nested deeper"):
        read_tensors(tmp_path / "model.pth")
