"""The queue keeps what it was given: once, in order, over restarts."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from sanitize.errors import WorkdirError
from sanitize.serve.queue import MOST_ATTEMPTS, Queue
from sanitize.serve.webhooks import Delivery


def delivery(number: int) -> Delivery:
    return Delivery(f"d-{number}", 0, "model_version_alias.created", {"version": str(number)})


@pytest.fixture
def queue(tmp_path: Path):
    queue = Queue(tmp_path / "new" / "queue.db")
    yield queue
    queue.close()


def test_once_and_in_order(queue: Queue):
    assert [queue.put(delivery(number)) for number in (1, 2, 1, 3)] == [True, True, False, True]
    jobs = [queue.take() for _ in range(3)]
    assert [job.data["version"] for job in jobs if job] == ["1", "2", "3"]
    assert queue.take() is None
    queue.finish(jobs[0], "done well")
    assert queue.put(delivery(1)) is False  # a replay, also after it was done
    assert queue.counts() == {"done": 1, "working": 2}
    assert queue.results() == {"d-1": "done well"}


def test_what_a_worker_left_is_done_again(queue: Queue, tmp_path: Path):
    queue.put(delivery(1))
    assert queue.take()
    other = Queue(tmp_path / "new" / "queue.db")
    other.recover()
    job = other.take()
    assert job is not None and job.attempts == 2
    other.close()


def test_later_attempts_wait_longer_and_end(queue: Queue, monkeypatch: pytest.MonkeyPatch):
    clock = [1000.0]
    monkeypatch.setattr("sanitize.serve.queue.time.time", lambda: clock[0])
    queue.put(delivery(1))
    waits = []
    while (job := queue.take()) is not None:
        queue.postpone(job, "the server is away")
        assert queue.take() is None
        waits.append(min(300, 2 ** (job.attempts - 1)))
        clock[0] += waits[-1]
    assert len(waits) == MOST_ATTEMPTS
    assert queue.counts() == {"failed": 1}


def test_a_killed_writer_loses_nothing_that_it_acknowledged(tmp_path: Path):
    script = """
import os, signal, sys
from pathlib import Path
from sanitize.serve.queue import Queue
from sanitize.serve.webhooks import Delivery
queue = Queue(Path(sys.argv[1]))
for number in range(20):
    queue.put(Delivery(f"d-{number}", 0, "e", {}))
    print(number, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "queue.db")], capture_output=True, text=True, check=False
    )
    assert done.returncode == -9
    queue = Queue(tmp_path / "queue.db")
    assert queue.counts() == {"waiting": 20}
    queue.close()


def test_a_file_that_is_no_queue(tmp_path: Path):
    (tmp_path / "queue.db").write_text("no database, but long enough to be taken for one" * 30)
    with pytest.raises(WorkdirError, match="--queue"):
        Queue(tmp_path / "queue.db")
    with pytest.raises(WorkdirError, match="--queue"):
        Queue(tmp_path / "queue.db" / "below")
    assert sqlite3.sqlite_version_info >= (3, 35)  # RETURNING
