"""The process that listens, and the one that works.

The first imports neither torch nor MLflow, so that it is back in a second after a crash: MLflow gives a delivery up
after three more tries, about ten seconds.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import uvicorn

from sanitize.errors import SanitizeError
from sanitize.serve.app import make_app
from sanitize.serve.queue import Queue

RESTART_AFTER = 5.0
MISCONFIGURED = 2
NICENESS = 10
"""Of the worker: answers come before work."""
_CHATTY = ("mlflow", "alembic", "lightning_fabric", "lightning")


def serve(
    *,
    queue: Path,
    secret: str,
    host: str,
    port: int,
    options: dict[str, Any],
    candidate: str,
    allow_stubbed: bool,
) -> int:
    """Listen until the process is told to stop; a worker that dies is started again.

    Args:
        queue: File with the deliveries.
        secret: Shared with MLflow.
        host: Address to listen on.
        port: Port to listen on.
        options: Of `sanitize.cli.gate.make_gate`, for the worker.
        candidate: Alias that asks for a decision.
        allow_stubbed: As in `sanitize.inputs.Request`.

    Returns:
        Exit code: 2 when the worker refused its options, which it has said on stderr.

    Raises:
        WorkdirError: The queue cannot be kept in that file.
    """
    deliveries = Queue(queue)
    context = multiprocessing.get_context("spawn")
    server = uvicorn.Server(
        uvicorn.Config(make_app(deliveries, secret), host=host, port=port, log_level="warning", access_log=False)
    )

    def start() -> BaseProcess:
        arguments = (queue, options, candidate, allow_stubbed, os.getpid())
        process = context.Process(target=_work, args=arguments, name="sanitize-worker", daemon=True)
        process.start()
        return process

    keeper = _Keeper(start, server)
    keeper.start()
    try:
        server.run()
    finally:
        keeper.stop()
        deliveries.close()
    return keeper.code


class _Keeper(threading.Thread):
    """Starts the worker, and starts it again when it dies; ends the server when it cannot work at all."""

    def __init__(self, start: Callable[[], BaseProcess], server: uvicorn.Server) -> None:
        super().__init__(daemon=True)
        self._start_worker = start
        self._server = server
        self._stopping = threading.Event()
        self.code = 0

    def run(self) -> None:
        while not self._stopping.is_set():
            started, process = time.monotonic(), self._start_worker()
            while process.is_alive() and not self._stopping.wait(0.2):
                pass
            if self._stopping.is_set():
                process.terminate()
                process.join(5)
            elif process.exitcode == MISCONFIGURED:
                self.code, self._server.should_exit = MISCONFIGURED, True
                return
            elif time.monotonic() - started < RESTART_AFTER:  # it cannot even start: do not spin
                self._stopping.wait(RESTART_AFTER)

    def stop(self) -> None:
        self._stopping.set()
        self.join(10)


def _work(queue: Path, options: dict[str, Any], candidate: str, allow_stubbed: bool, parent: int) -> None:
    """The worker's process; it ends when its parent does."""
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    from sanitize.cli.gate import make_gate
    from sanitize.serve.worker import Worker

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        worker = Worker(make_gate(**options), candidate=candidate, allow_stubbed=allow_stubbed)
    except SanitizeError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(MISCONFIGURED) from error
    worker.work(Queue(queue, durable=False), wanted=lambda: os.getppid() == parent)
