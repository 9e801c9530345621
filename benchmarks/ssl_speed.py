"""Images per second of SimCLR training here, against the usual lightly loop on the same machine in the same run.

    python -m benchmarks.ssl_speed --arch small-cnn --seconds 20

The usual loop is lightly's example: PIL images, `SimCLRTransform` in a DataLoader with one worker a core, fp32. Both
have the same network, projector, loss, optimizer, batch and image size. Loops take turns, so that a machine that is
busy for a while is busy for all of them; rates are medians over the rounds. "network alone" trains on views that are
there already: no loop with that precision can be faster, whatever its views cost.

On a machine that others use too, ``--clock cpu`` counts the CPU time of this process instead of the wall's, with the
usual loop's views made in it as well: the ratio is then that of the work, as two idle cores would show it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightly.loss import NTXentLoss
from lightly.transforms.simclr_transform import SimCLRTransform
from PIL import Image
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from sanitize.data import ImageSet
from sanitize.suspects import Network, untrained
from sanitize.trainers import SimCLR
from sanitize.training import Engine

# Dense peaks in FLOP/s from NVIDIA's data sheets: matrix units in bf16, vector units in fp32.
PEAKS = {
    "H200": {"bf16-mixed": 989e12, "32-true": 67e12},
    "H100": {"bf16-mixed": 989e12, "32-true": 67e12},
    "A100": {"bf16-mixed": 312e12, "32-true": 19.5e12},
}


@dataclass(frozen=True)
class Setting:
    """What is the same for all loops."""

    arch: str
    image_size: int
    batch_size: int
    images: int
    seconds: float
    workers: int
    device: str
    clock: str

    def now(self) -> float:
        return time.process_time() if self.clock == "cpu" else time.perf_counter()

    def network(self) -> Network:
        return untrained(self.arch, kind="encoder", image_size=self.image_size, normalization="cifar10")

    def data(self) -> ImageSet:
        shape = (self.images, 3, self.image_size, self.image_size)
        generator = torch.Generator().manual_seed(0)
        return ImageSet(images=torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator), uri="noise")

    def trainer(self, epochs: int = 1) -> SimCLR:
        return SimCLR(epochs=epochs, batch_size=self.batch_size, learning_rate=0.06)

    def learner(self) -> nn.Module:
        return self.trainer().learner(self.network(), 1)


@dataclass(frozen=True)
class Row:
    """One loop's result."""

    loop: str
    precision: str
    channels_last: bool
    images_per_second: float
    ratio: float
    share_of_peak: float | None


class Pictures(Dataset[Any]):
    """PIL images and lightly's transform."""

    def __init__(self, data: ImageSet) -> None:
        self.pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in data.images]
        self.transform = SimCLRTransform(input_size=data.image_size, cj_strength=0.5, min_scale=0.2, gaussian_blur=0.0)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.pictures[index])


def usual(setting: Setting) -> Callable[[], float]:
    """The usual loop; the first two batches, in which workers start, do not count."""
    device = torch.device(setting.device)
    learner = setting.learner().to(device).train()
    loader = DataLoader(
        Pictures(setting.data()),
        batch_size=setting.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=setting.workers,
        persistent_workers=setting.workers > 0,
        pin_memory=device.type == "cuda",
    )
    criterion, optimizer = NTXentLoss(temperature=0.5), SGD(learner.parameters(), lr=0.06, momentum=0.9)

    def measure() -> float:
        steps, started = -2, 0.0
        while True:
            for first, second in loader:
                if steps == 0:
                    _wait(device)
                    started = setting.now()
                one, other = learner(first.to(device, non_blocking=True)), learner(second.to(device, non_blocking=True))
                loss = criterion(one, other)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                steps += 1
                if steps > 0 and setting.now() - started >= setting.seconds:
                    _wait(device)
                    return steps * setting.batch_size / (setting.now() - started)

    return measure


def ours(setting: Setting, precision: str, channels_last: bool) -> Callable[[], float]:
    """`SimCLR.train`, for about the asked seconds."""
    data = setting.data()
    engine = Engine(device=setting.device, precision=precision, channels_last=channels_last)
    rates: list[float] = []

    def run(images: ImageSet, epochs: int) -> float:
        network, started = setting.network(), setting.now()
        history = setting.trainer(epochs).train(network, images, engine).history["simclr"]
        return history.images / (setting.now() - started)

    def measure() -> float:
        if not rates:
            run(data.subset(slice(2 * setting.batch_size)), 1)
            rates.append(run(data.subset(slice(4 * setting.batch_size)), 1))
        rates.append(run(data, max(1, round(setting.seconds * rates[-1] / setting.images))))
        return rates[-1]

    return measure


def alone(setting: Setting, precision: str, channels_last: bool) -> Callable[[], float]:
    """Forward, backward and optimizer on views that never change."""
    engine = Engine(device=setting.device, precision=precision)
    learner = setting.learner()
    if channels_last:
        learner.to(memory_format=torch.channels_last)
    learner, optimizer = engine.fabric.setup(learner, SGD(learner.parameters(), lr=0.06, momentum=0.9))
    views = torch.rand(2 * setting.batch_size, 3, setting.image_size, setting.image_size, device=engine.device)
    criterion = NTXentLoss(temperature=0.5)

    def measure() -> float:
        steps, started = -2, 0.0
        while True:
            if steps == 0:
                _wait(engine.device)
                started = setting.now()
            optimizer.zero_grad()
            engine.fabric.backward(criterion(*learner(views).chunk(2)))
            optimizer.step()
            steps += 1
            if steps > 0 and setting.now() - started >= setting.seconds:
                _wait(engine.device)
                return steps * setting.batch_size / (setting.now() - started)

    return measure


def flops_per_image(setting: Setting) -> float:
    """Of forward and backward of both views; a multiplication and an addition are two."""
    learner = setting.learner().train()
    with FlopCounterMode(display=False) as counter:
        learner(torch.rand(8, 3, setting.image_size, setting.image_size)).sum().backward()
    return float(2 * counter.get_total_flops() / 8)


def compare(setting: Setting, rounds: int) -> tuple[list[Row], float]:
    """All loops in turn; also the FLOPs of an image."""
    ways = [(precision, last) for precision in ("32-true", "bf16-mixed") for last in (False, True)]
    loops = {("lightly and PIL", "32-true", False): usual(setting)}
    loops |= {("sanitize", *way): ours(setting, *way) for way in ways}
    loops |= {("network alone", *way): alone(setting, *way) for way in ways}
    rates: dict[tuple[str, str, bool], list[float]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, measure in loops.items():
            rates[name].append(measure())
            print(*name, f"{rates[name][-1]:,.0f} images/s", flush=True)
    flops = flops_per_image(setting)
    reference = median(rates[next(iter(loops))])
    peak = next((peaks for name, peaks in PEAKS.items() if name in hardware(setting.device)), {})
    rows = []
    for (loop, precision, last), found in rates.items():
        rate = median(found)
        share = rate * flops / peak[precision] if precision in peak else None
        rows.append(Row(loop, precision, last, round(rate, 1), round(rate / reference, 2), share))
    return rows, flops


def hardware(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = models[0].partition(":")[2].strip() if models else platform.processor()
    return f"{name}, {torch.get_num_threads()} threads of {os.cpu_count()} cores"


def markdown(rows: list[Row], facts: dict[str, object]) -> str:
    lines = [f"{name}: {value}  " for name, value in facts.items()]
    lines += [
        "",
        "| loop | precision | channels_last | images/s | times lightly | share of peak |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        share = "-" if row.share_of_peak is None else f"{row.share_of_peak:.1%}"
        cells = [row.loop, row.precision, "yes" if row.channels_last else "no", f"{row.images_per_second:,.0f}"]
        lines.append(f"| {' | '.join([*cells, f'{row.ratio:.2f}', share])} |")
    return "\n".join(lines) + "\n"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="small-cnn")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each loop in each round")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch, on a CPU")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="of the usual loop's DataLoader")
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", type=Path, help="writes OUTPUT.json and OUTPUT.md")
    options = parser.parse_args()
    if options.clock == "cpu":
        options.workers = 0  # their time would not be counted
    torch.set_num_threads(options.threads)
    chosen = {name: getattr(options, name) for name in Setting.__dataclass_fields__}
    load = os.getloadavg()[0]
    rows, flops = compare(Setting(**chosen), options.rounds)
    facts: dict[str, object] = {
        **{name: value for name, value in chosen.items() if name != "device"},
        "rounds": options.rounds,
        "hardware": hardware(options.device),
        "load average before and after": f"{load:.1f}, {os.getloadavg()[0]:.1f}",
        "torch": torch.__version__,
        "lightly": version("lightly"),
        "MFLOP an image": round(flops / 1e6, 1),
    }
    table = markdown(rows, facts)
    print(table)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        content = {"facts": facts, "rows": [asdict(row) for row in rows]}
        options.output.with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n")
        options.output.with_suffix(".md").write_text(table)


if __name__ == "__main__":
    main()
