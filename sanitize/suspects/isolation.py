"""Runs the extraction in a child process with as little power as this system can take away."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from sanitize.errors import ArtifactError
from sanitize.suspects.extract.command import FOUND

SCRIPT = Path(__file__).with_name("_extract.py")
MAX_FOUND_BYTES = 256 << 20
_BUBBLEWRAP = ("--unshare-all", "--die-with-parent", "--new-session", "--ro-bind", "/", "/")
_FRESH = ("--proc", "/proc", "--dev", "/dev")


def run_extraction(request: dict[str, Any], output: Path) -> dict[str, Any]:
    """Serve one extraction request in a child process.

    The child is ``python -I -S -B`` with an empty environment, its own limits on CPU time, memory, file size, files and
    processes, and, where bubblewrap works, no network and a file system that is read-only except for `output`.

    Args:
        request: See `sanitize.suspects.extract.command.main`.
        output: Empty folder for what the child writes.

    Returns:
        What the child found, with `missing`: the protections that were not available.

    Raises:
        ArtifactError: The child was stopped by a limit, or died.
    """
    output = output.resolve()
    question = output / "request.json"
    question.write_text(json.dumps(request))
    command = [sys.executable, "-I", "-S", "-B", str(SCRIPT), str(question), str(output)]
    boxed = bubblewrap()
    if boxed:
        # The fresh /dev hides what lies in /dev/shm: bound again, the suspect read-only.
        suspect = ["--ro-bind-try", request["root"], request["root"]] if Path(request["root"]).is_absolute() else []
        bound = [*suspect, "--bind", str(output), str(output)]
        command = [boxed, *_BUBBLEWRAP, *_FRESH, *bound, "--chdir", "/", *command]
    code = _run(command, output, request["seconds"])
    answer = output / FOUND
    if not answer.is_file() or answer.is_symlink() or answer.stat().st_size > MAX_FOUND_BYTES:
        raise ArtifactError(f"{request['root']} could not be read: {_why(code, output, request)}")
    found: dict[str, Any] = _printable(json.loads(answer.read_text()))
    if found.get("file", "") not in (*request.get("files", ()), ""):
        raise ArtifactError(f"{request['root']} could not be read: the reader named a file that it was not given.")
    if not boxed:
        found["missing"].append("bubblewrap (no network, read-only files)")
    return found


def _printable(value: Any) -> Any:
    # Names from the artifact end up on terminals and in reports: no control characters.
    if isinstance(value, str):
        return (
            value
            if value.isprintable()
            else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in value)
        )
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    return [_printable(item) for item in value] if isinstance(value, list) else value


@functools.cache
def bubblewrap() -> str | None:
    """Path of bubblewrap where it works: in some containers it exists but may not create namespaces."""
    path = shutil.which("bwrap") if sys.platform == "linux" else None
    if path is None:
        return None
    command = [path, *_BUBBLEWRAP, *_FRESH, sys.executable, "-I", "-S", "-c", ""]
    try:
        done = subprocess.run(command, capture_output=True, timeout=30, env={}, stdin=subprocess.DEVNULL, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return path if done.returncode == 0 else None


def _run(command: list[str], output: Path, seconds: int) -> int | None:
    # Windows does not start Python without SYSTEMROOT.
    environment = {name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ}
    with (output / "stderr.txt").open("wb") as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=environment | {"LC_ALL": "C.UTF-8"},
            cwd=output,
            start_new_session=True,
        )
        try:
            return process.wait(timeout=2 * seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def _why(code: int | None, output: Path, request: dict[str, Any]) -> str:
    if code is None:
        return (
            f"the reader was stopped after {2 * request['seconds']} s. The file is built to be slow, or far too large."
        )
    overtime = int(getattr(signal, "SIGXCPU", 24))
    if code in (-overtime, 128 + overtime):
        return f"the reader used more than {request['seconds']} s of CPU time and was stopped."
    if code in (-9, 137):
        return "the reader was killed, by a limit or for want of memory."
    last = (output / "stderr.txt").read_text(errors="replace").strip().splitlines()[-1:]
    return f"the reader ended with code {code} ({last[0][:300] if last else 'no message'})."
