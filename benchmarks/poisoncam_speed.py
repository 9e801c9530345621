"""PoisonCAM's search against a PatchSearch-style loop on the same device: ``python -m benchmarks.poisoncam_speed``.

The loop takes one candidate at a time: Grad-CAM with one backward pass, and the window pasted on every flip image on
the CPU, float32, then moved to the device. It is timed on a few candidates. Scores need no threat model.
"""

from __future__ import annotations

import argparse
import time

import torch

from sanitize.data import DeviceImages, load_images
from sanitize.detection import PoisonCAM
from sanitize.detection.flip_test import Assigner, FlipTest, choose_flip_images
from sanitize.detection.patchsearch import grad_cam, map_layer
from sanitize.functional.clusters import cluster
from sanitize.functional.masks import best_window, cut
from sanitize.suspects import untrained
from sanitize.training import Engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits#0:400")
    parser.add_argument("--architecture", default="small-cnn")
    parser.add_argument("--flip-images", type=int, default=1000)
    parser.add_argument("--loop-candidates", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="32-true")
    arguments = parser.parse_args()

    engine = Engine(device=arguments.device, precision=arguments.precision)
    data = load_images(arguments.data).without_labels()
    network = untrained(arguments.architecture, kind="encoder", image_size=data.image_size, normalization="half")
    images = DeviceImages(data, engine.device)
    clusters = cluster(engine.forward(network, images.pixels, len(images)), 20, seed=0)
    assign = Assigner(network, clusters, engine, 256)
    detector = PoisonCAM()
    window = detector.window_on(data.image_size)
    chosen = choose_flip_images(clusters, len(data), engine.generator("images"))
    chosen = chosen.repeat(-(-arguments.flip_images // len(chosen)))[: arguments.flip_images]
    corners = torch.randint(data.image_size - window + 1, (len(chosen), 2), generator=engine.generator("places"))
    test = FlipTest(assign, data.images[chosen].to(engine.device), clusters.assignment[chosen], corners.tolist())
    sources = clusters.assignment.to(engine.device)
    attention = detector.attention(assign, data.image_size, engine)

    def seconds(count: int) -> tuple[float, float]:
        """Of the maps, and of the flip test, of the first images."""
        started = time.perf_counter()
        rows = torch.arange(count)
        places = torch.cat([best_window(attention(images.pixels(part)), window) for part in torch.split(rows, 64)])
        mapped = time.perf_counter()
        windows = cut(data.images[rows], places.cpu(), window).to(engine.device)
        test.halving(windows, sources[rows], first=detector.first_flips, keep=detector.top)
        if engine.device.type == "cuda":
            torch.cuda.synchronize()
        return mapped - started, time.perf_counter() - mapped

    seconds(32)  # warm-up
    before = assign.forwards
    maps, flips = seconds(len(data))
    forwards = assign.forwards - before

    layer = map_layer(assign.network, engine.device)
    started = time.perf_counter()
    for row in range(arguments.loop_candidates):
        place = best_window(grad_cam(assign.network, layer, assign.centres, images.pixels(slice(row, row + 1))), window)
        patch = cut(data.images[row : row + 1], place.cpu(), window)[0].float() / 255
        with torch.inference_mode():
            for number, (top, left) in enumerate(corners.tolist()):
                image = data.images[chosen[number]].float() / 255
                image[:, top : top + window, left : left + window] = patch
                assign(image[None].to(engine.device))
    looped = arguments.loop_candidates / (time.perf_counter() - started)

    found = len(data) / (maps + flips)
    print(
        f"device {engine.device}, {torch.get_num_threads()} threads, {arguments.architecture}, {len(data)} candidates"
    )
    print(f"PoisonCAM           {found:8.2f} candidates/s ({maps:.1f} s maps, {flips:.1f} s flip test)")
    print(f"forward passes      {forwards / len(data):8.1f} a candidate (plain: {64 + len(chosen)})")
    print(f"PatchSearch's loop  {looped:8.2f} candidates/s")
    print(f"speed-up            {found / looped:8.1f}")


if __name__ == "__main__":
    main()
