"""Deliveries in a SQLite file: what was answered with 202 is on the disk, and survives whatever happens next."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sanitize.errors import WorkdirError
from sanitize.serve.webhooks import MAX_AGE, Delivery

KEPT = 30 * 24 * 3600
"""Seconds that finished deliveries stay: far longer than a delivery is accepted, so that none can be replayed."""
MOST_ATTEMPTS = 10
_TABLE = """
CREATE TABLE IF NOT EXISTS deliveries (
    id TEXT PRIMARY KEY,
    received REAL NOT NULL,
    due REAL NOT NULL,
    event TEXT NOT NULL,
    data TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'working', 'done', 'failed')),
    attempts INTEGER NOT NULL DEFAULT 0,
    result TEXT NOT NULL DEFAULT ''
)
"""
assert KEPT > MAX_AGE


@dataclass(frozen=True)
class Job:
    """A delivery to work on."""

    id: str
    event: str
    data: dict[str, Any]
    attempts: int


class Queue:
    """Deliveries, oldest first; one writer and one worker at a time may have it open.

    Args:
        path: The file; made when missing.
        durable: Whether what is written survives a power cut at once. The worker does without: what it forgets, it does
            again.

    Raises:
        WorkdirError: It cannot be written, or is no queue.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=30, check_same_thread=False, isolation_level=None)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._database.execute(_TABLE)
        except (OSError, sqlite3.Error) as error:
            raise WorkdirError(f"cannot keep the queue in {path} ({error}). Choose another --queue.") from error

    def put(self, delivery: Delivery) -> bool:
        """Keep a delivery; whether it is new."""
        now = time.time()
        row = (delivery.id, now, now, delivery.event, json.dumps(delivery.data))
        with self._lock:
            made = self._database.execute(
                "INSERT INTO deliveries (id, received, due, event, data) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                row,
            )
        return made.rowcount == 1

    def recover(self) -> None:
        """What a worker had begun and not finished waits again; what was finished long ago goes."""
        with self._lock:
            self._database.execute("UPDATE deliveries SET state = 'waiting' WHERE state = 'working'")
            self._database.execute(
                "DELETE FROM deliveries WHERE state IN ('done', 'failed') AND received < ?", (time.time() - KEPT,)
            )

    def take(self) -> Job | None:
        """The oldest delivery that is due, marked as being worked on; None when there is none."""
        with self._lock:
            row = self._database.execute(
                "UPDATE deliveries SET state = 'working', attempts = attempts + 1 WHERE id = ("
                "SELECT id FROM deliveries WHERE state = 'waiting' AND due <= ? ORDER BY received LIMIT 1"
                ") RETURNING id, event, data, attempts",
                (time.time(),),
            ).fetchone()
        return None if row is None else Job(row[0], row[1], json.loads(row[2]), row[3])

    def finish(self, job: Job, result: str, *, failed: bool = False) -> None:
        """Enter what came of a delivery."""
        self._set(job, "failed" if failed else "done", result, 0.0)

    def postpone(self, job: Job, why: str) -> None:
        """Try again later: after 1, 2, 4 ... seconds, at most five minutes; given up after `MOST_ATTEMPTS`."""
        if job.attempts >= MOST_ATTEMPTS:
            self.finish(job, f"given up after {job.attempts} attempts: {why}", failed=True)
        else:
            self._set(job, "waiting", why, time.time() + min(300, 2 ** (job.attempts - 1)))

    def counts(self) -> dict[str, int]:
        """State -> number of deliveries."""
        with self._lock:
            return dict(self._database.execute("SELECT state, count(*) FROM deliveries GROUP BY state").fetchall())

    def results(self) -> dict[str, str]:
        """Id -> what came of it, for all that are done."""
        with self._lock:
            return dict(self._database.execute("SELECT id, result FROM deliveries WHERE state = 'done'").fetchall())

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _set(self, job: Job, state: str, result: str, due: float) -> None:
        with self._lock:
            self._database.execute(
                "UPDATE deliveries SET state = ?, result = ?, due = ? WHERE id = ?", (state, result[:2000], due, job.id)
            )
