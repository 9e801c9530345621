"""Signed deliveries at a fixed rate against a real `sanitize serve`, which is killed in the middle and started again.

    python -m benchmarks.webhooks --rate 50 --seconds 20

Each delivery is sent again, as MLflow does, until it is acknowledged. In the end every one of them must have been
worked on, and the answers must have come within 100 ms; those right after the restart, when all that waited is sent at
once, are told apart.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from sanitize.serve.queue import Queue
from sanitize.serve.webhooks import sign

SECRET = "a secret for the benchmark"
EVENT = {"entity": "model_version_alias", "action": "created", "data": {"name": "m", "alias": "other", "version": "1"}}


@dataclass
class Load:
    """What happened to the deliveries.

    Args:
        steady: Seconds of each answer to a delivery that was sent once.
        resent: Seconds of the last answer to each that was sent again.
        acknowledged: Ids that were answered with 200 or 202.
    """

    steady: list[float] = field(default_factory=list)
    resent: list[float] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)


class Service:
    """A `sanitize serve` process on a free port."""

    def __init__(self, folder: Path, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.queue = folder / "webhooks.db"
        self.log = folder / "serve.log"
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [sys.executable, "-m", "sanitize", "serve", "--port", str(self.port), "--queue", str(self.queue)]
        environment = os.environ | {"SANITIZE_WEBHOOK_SECRET": SECRET}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *self.options], env=environment, stdout=log, stderr=log, cwd=self.queue.parent
            )
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self.request("GET", "/health", b"", {})
                return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError(f"`sanitize serve` did not start: {self.log.read_text()[-2000:]}")

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Send a signal, and wait for the end."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(30)

    def request(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> int:
        """Status of one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            answer.read()
            return answer.status
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error
        finally:
            connection.close()


def send(service: Service, number: int, load: Load, lock: threading.Lock) -> None:
    """One delivery, until it is acknowledged; signed once, as MLflow does."""
    delivery, sent, body = f"delivery-{number}", str(int(time.time())), json.dumps(EVENT).encode()
    headers = {
        "X-MLflow-Delivery-Id": delivery,
        "X-MLflow-Timestamp": sent,
        "X-MLflow-Signature": sign(SECRET, delivery, sent, body),
        "Content-Type": "application/json",
    }
    for attempt in range(200):
        started = time.perf_counter()
        try:
            status = service.request("POST", "/webhook", body, headers)
        except OSError:
            status = 0
        with lock:
            if status in (200, 202):
                (load.resent if attempt else load.steady).append(time.perf_counter() - started)
                load.acknowledged.append(delivery)
                return
        time.sleep(1 + random.Random(number).random())  # MLflow waits 1, 2, 4 s and up to one more


def run(folder: Path, *, rate: int, seconds: float, options: tuple[str, ...]) -> tuple[Load, dict[str, int], list[str]]:
    """Load with a kill in the middle: what was measured, states in the queue, and ids that were lost."""
    service, load, lock = Service(folder, *options), Load(), threading.Lock()
    service.start()
    total = int(rate * seconds)

    def restart() -> None:
        service.stop(signal.SIGKILL)
        service.start()

    killer = threading.Timer(seconds / 2, restart)
    killer.start()
    begin = time.monotonic()
    with ThreadPoolExecutor(4 * rate) as pool:
        for number in range(total):
            time.sleep(max(0.0, begin + number / rate - time.monotonic()))
            pool.submit(send, service, number, load, lock)
    killer.join()
    queue = Queue(service.queue)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and set(queue.counts()) != {"done"}:
        time.sleep(0.2)
    counts, done = queue.counts(), queue.results()
    service.stop()
    queue.close()
    return load, counts, sorted({f"delivery-{number}" for number in range(total)} - set(done))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=20)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        options = ("--tracking-uri", f"sqlite:///{temporary}/mlflow.db", "--device", "cpu")
        load, counts, lost = run(Path(temporary), rate=given.rate, seconds=given.seconds, options=options)
    print(f"{len(load.acknowledged)} deliveries acknowledged, {len(lost)} lost, {counts}")
    for name, seconds in (("sent once", load.steady), ("sent again after the restart", load.resent)):
        if len(seconds) > 1:
            centiles = [1000 * value for value in statistics.quantiles(seconds, n=100)]
            print(
                f"{name}: {len(seconds)}; median {centiles[49]:.1f} ms, 95 % {centiles[94]:.1f} ms, "
                f"99 % {centiles[98]:.1f} ms, longest {1000 * max(seconds):.1f} ms"
            )
    raise SystemExit(1 if lost else 0)


if __name__ == "__main__":
    main()
