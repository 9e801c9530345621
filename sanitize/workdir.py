"""The work directory of one job: locked, resumable, and free of leftovers when the job is done."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from filelock import FileLock, Timeout

from sanitize.errors import WorkdirError

DEFAULT_PARENT = ".sanitize"


class Workdir:
    """One folder, one job at a time.

    ``job.json`` holds the fingerprint of the job (everything that decides its result), its MLflow run, and whether it
    is finished; ``checkpoints/`` the state of its stages; ``quarantine/``, ``staging/`` and ``temporary/`` what is
    being read and written. Only the results stay when the job is finished.

    Args:
        path: Created when missing.
        resume: Continue the unfinished job that is in it.

    Raises:
        WorkdirError: Not writable, in use by another process, or without the job that is to be resumed.
    """

    owns_process: ClassVar[bool] = False
    """Set by the command line: temporary files of the whole process, of libraries too, go into the work directory, so
    that a kill leaves none elsewhere. A program that uses `sanitize` beside other work keeps its own place for them."""

    def __init__(self, path: Path, *, resume: bool = False) -> None:
        self.path = path.absolute()
        self.resume = resume
        self.interrupted_run: str | None = None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise WorkdirError(
                f"cannot write into the work directory {self.path} ({error.strerror}). Choose another with --workdir."
            ) from error
        self._lock = FileLock(self.path / ".lock")

    @property
    def checkpoints(self) -> Path:
        """State of the stages."""
        return self.path / "checkpoints"

    @property
    def quarantine(self) -> Path:
        """Where the suspect's files are kept while they are read."""
        return self.path / "quarantine"

    @property
    def staging(self) -> Path:
        """Where the result is put together."""
        return self.path / "staging"

    @property
    def temporary(self) -> Path:
        """Where temporary files are, if the process is the job's own."""
        return self.path / "temporary"

    def __enter__(self) -> Self:
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise WorkdirError(
                f"another process works in {self.path}. Wait for it, or choose another --workdir."
            ) from error
        self._clear(self.quarantine, self.staging, self.temporary)
        if self.owns_process:
            self.temporary.mkdir()
            self._elsewhere, tempfile.tempdir = tempfile.tempdir, str(self.temporary)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.owns_process:
            tempfile.tempdir = self._elsewhere
        self._clear(self.quarantine, self.staging, self.temporary)
        if not (self.path / "job.json").exists():  # refused before it was a job: leave nothing
            (self.path / ".lock").unlink(missing_ok=True)
            with suppress(OSError):  # not empty: it was somebody's folder
                self.path.rmdir()
                if self.path.parent.name == DEFAULT_PARENT:
                    self.path.parent.rmdir()
        self._lock.release()

    def begin(self, fingerprint: Mapping[str, Any]) -> str | None:
        """Start this job, or continue it.

        Returns:
            The run id of the job that is continued, or None for a new one.

        Raises:
            WorkdirError: `resume` was asked for, and the job in here is another, or there is none.
        """
        job = self._read()
        if self.resume:
            if job is None:
                raise WorkdirError(f"nothing to resume in {self.path}: leave --resume out to start.")
            if job["fingerprint"] != dict(fingerprint):
                changed = sorted(
                    key
                    for key in {*fingerprint, *job["fingerprint"]}
                    if fingerprint.get(key) != job["fingerprint"].get(key)
                )
                raise WorkdirError(
                    f"the job in {self.path} was started with other settings ({', '.join(changed)} differ). "
                    "Give the same ones, or another --workdir."
                )
            run: str | None = job["run_id"]
            return run
        if job is not None and not job["finished"]:
            self.interrupted_run = job["run_id"]
        self._clear(self.checkpoints)
        self._write({"fingerprint": dict(fingerprint), "run_id": None, "finished": False})
        return None

    def remember_run(self, run_id: str) -> None:
        """Note which MLflow run belongs to this job."""
        self._write((self._read() or {}) | {"run_id": run_id})

    def finished_report(self, fingerprint: Mapping[str, Any]) -> Path | None:
        """The report of this very job, if it was finished here and `resume` is asked for."""
        job, report = self._read(), self.path / "report.json"
        done = self.resume and job is not None and job["finished"] and job["fingerprint"] == dict(fingerprint)
        return report if done and report.is_file() else None

    def finish(self) -> None:
        """The job is done: drop everything but its results."""
        self._write((self._read() or {}) | {"finished": True})
        self._clear(self.checkpoints, self.quarantine, self.staging)

    def _read(self) -> dict[str, Any] | None:
        path = self.path / "job.json"
        if not path.is_file():
            return None
        try:
            job = json.loads(path.read_text())
            return {"fingerprint": job["fingerprint"], "run_id": job["run_id"], "finished": job["finished"]}
        except (ValueError, KeyError, TypeError) as error:
            raise WorkdirError(f"{path} is not a job of this tool. Choose another --workdir.") from error

    def _write(self, job: Mapping[str, Any]) -> None:
        try:
            with tempfile.NamedTemporaryFile("w", dir=self.path, suffix=".partial", delete=False) as file:
                json.dump(job, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            Path(file.name).replace(self.path / "job.json")
        except OSError as error:
            raise WorkdirError(f"cannot write into the work directory {self.path} ({error.strerror}).") from error

    @staticmethod
    def _clear(*folders: Path) -> None:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
