"""Time of UAU against BMAIU's, each with its defaults, on the same suspect: ``python -m benchmarks.uau_time``.

The suspect is that of the row `corner` in the study `uau`. Processor time on a CPU, so that other work on the machine
counts little; wall time on a GPU.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from benchmarks.lab import Lab
from benchmarks.profiles import data_folder, profile_named
from benchmarks.subjects import suspect
from benchmarks.uau import kinds_of_trigger
from sanitize.data import ImageSet, load_images
from sanitize.defenses import BMAIU, UAU, Purifier
from sanitize.suspects import Network
from sanitize.training import Engine


def seconds(defense: Purifier, network: Network, data: ImageSet, device: str) -> float:
    """Of one purification."""
    engine = Engine(device=device)
    clock = time.perf_counter if engine.device.type == "cuda" else time.process_time
    started = clock()
    defense.purify(network, data, engine)
    return clock() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="small")
    parser.add_argument("--work", type=Path, default=Path("benchmark-work"))
    parser.add_argument("--images", type=int, nargs="+", default=[140, 5000])
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()

    lab = Lab(profile_named(arguments.profile), arguments.work, device=arguments.device)
    network = suspect(
        lab, "simclr", "badencoder", triggers=[kinds_of_trigger(lab.profile.image_size)["corner"]]
    ).network
    print(
        f"{arguments.device}, {torch.get_num_threads()} threads, {network.spec.architecture}, torch {torch.__version__}"
    )
    print("| images | UAU, s | BMAIU, s | ratio |")
    print("|---|---|---|---|")
    for count in arguments.images:
        source = f"{data_folder() / 'cifar10-train.parquet'}#0:{count}"
        data = load_images(source, image_size=lab.profile.image_size).without_labels()
        uau, bmaiu = (seconds(defense, network, data, arguments.device) for defense in (UAU(), BMAIU()))
        print(f"| {count} | {uau:.0f} | {bmaiu:.0f} | {uau / bmaiu:.2f} |", flush=True)


if __name__ == "__main__":
    main()
