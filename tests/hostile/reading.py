"""Reads one artifact in a process of its own, with bounds on memory, time and files; says what came of it."""

from __future__ import annotations

import pickle
import resource
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from sanitize.data import load_images
from sanitize.suspects import read_tensors

SECONDS = 20
MEMORY = 3 << 30
"""Address space beyond what the libraries take, in bytes."""


def examine(path: Path, reader: str, answer: Connection) -> None:
    """Send (name of the error or None, message, rules of the findings, seconds of CPU, bytes of memory)."""
    _limit()
    torch.set_num_threads(1)
    before, started = _resident(), time.process_time()
    error, message, rules = None, "", []
    try:
        if reader == "model":
            rules = [finding.rule for finding in read_tensors(path).findings]
        else:
            load_images(str(path), image_size=32)
    except Exception as caught:
        error, message = [kind.__name__ for kind in type(caught).__mro__], str(caught)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = time.process_time() - started + children.ru_utime + children.ru_stime
    answer.send((error, message, rules, seconds, _resident() - before))


def detonate(path: Path, answer: Connection) -> None:
    """Unpickle everything in a file, as an ordinary loader does: what it is worth as a weapon."""

    class Loader(pickle.Unpickler):
        def persistent_load(self, identity: object) -> object:
            return None

    with path.open("rb") as stream:
        while stream.peek(1):
            try:
                Loader(stream).load()
            except Exception as error:  # what the payload leaves on the stack need not make sense
                answer.send(repr(error))
                return
    answer.send("")


def _limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    space = pages * resource.getpagesize() + MEMORY
    for kind, value in {
        resource.RLIMIT_AS: space,
        resource.RLIMIT_CPU: 2 * SECONDS,
        resource.RLIMIT_FSIZE: MEMORY,
        resource.RLIMIT_CORE: 0,
    }.items():
        resource.setrlimit(kind, (value, value))


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
