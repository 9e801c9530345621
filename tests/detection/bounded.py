"""PoisonCAM, SimCLR, or no more than reading, in a process whose memory is limited; run by test_bounded_memory.py.

The limit is on private memory (RLIMIT_DATA: heap, stacks, anonymous maps): what the process has after a run on a few
images, and a number of bytes for the whole set. Pages of a mapped file do not count; the system may drop them.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from sanitize.data import ImageSet, load_images
from sanitize.data.room import Room
from sanitize.detection import PoisonCAM
from sanitize.suspects import untrained
from sanitize.trainers import SimCLR
from sanitize.training import Engine

SIZE = 128
DETECTOR = {
    "classifier": f"{__file__}:classifier", "clusters": 10, "search": "iterative", "flip_images": 12, "top": 5,
    "mask_stride": 32, "null_windows": 100, "networks": 1, "iterations": 20, "classifier_batch": 8, "batch_size": 32,
}  # fmt: skip


def encoder() -> nn.Module:
    """A network that costs less than reading its images."""
    return nn.Sequential(nn.Conv2d(3, 16, 32, stride=32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def classifier() -> nn.Module:
    """Two classes."""
    return nn.Sequential(encoder(), nn.Linear(16, 2))


def search(data: ImageSet) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and the poison classifier's answers, whether or not there is evidence."""
    detector, engine = PoisonCAM(**DETECTOR), Engine(device="cpu")
    network = untrained(f"{__file__}:encoder", kind="encoder", image_size=SIZE, normalization="half")
    scores = detector.score(network, data, engine)
    found = SimpleNamespace(flips=scores.flips, corners=scores.corners, window=scores.window)
    left = torch.ones(len(data), dtype=torch.bool)
    return scores.values, detector._filter(data, found, scores.order, scores.top, left, 1, engine)


def train(data: ImageSet) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights after one pass."""
    network = untrained(f"{__file__}:encoder", kind="encoder", image_size=SIZE, normalization="half")
    SimCLR(epochs=1, batch_size=16, dimensions=8).train(network, data, Engine(device="cpu"))
    weights = torch.cat([weight.flatten() for weight in network.state_dict().values()])
    return weights, weights


def read(data: ImageSet) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of every image."""
    means = torch.cat([part.float().mean(dim=(1, 2, 3)) for part in data.images.split(32)])
    return means, means


def private() -> int:
    """Bytes that RLIMIT_DATA counts."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData:")]
    return 1024 * int(line.split()[1])


def main(work: str, source: str, bound: int, room: str) -> None:
    torch.set_num_threads(1)
    done = {"search": search, "train": train, "read": read}[work]
    few = load_images(f"{source}#:120", image_size=SIZE)
    if room == "file":
        done(few)
    limit = private() + bound
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with tempfile.TemporaryDirectory() as folder:
        data = load_images(source, image_size=SIZE, room=Room(bound // 8, Path(folder)) if room == "file" else None)
        values, others = done(data)
        files = sum(file.stat().st_size for file in Path(folder).iterdir())
    assert bool(values.any())
    assert others.isfinite().all()
    print(len(data), files)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
