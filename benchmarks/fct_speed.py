"""FCT's scores of a data set, against a loop over its images on the same device: ``python -m benchmarks.fct_speed``.

The loop is what the published release does: one image at a time through the network, once as it is and once for each
transformed copy. It is timed on a part of the images and reckoned for all of them.
"""

from __future__ import annotations

import argparse
import time

import torch

from sanitize.data import DeviceImages, load_images
from sanitize.detection import FCT
from sanitize.detection.fct import feature_extractor
from sanitize.functional.consistency import feature_consistency, transform
from sanitize.suspects import untrained
from sanitize.training import Engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits#0:1000")
    parser.add_argument("--architecture", default="small-cnn")
    parser.add_argument("--loop-images", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()

    data, engine, fct = load_images(arguments.data), Engine(device=arguments.device), FCT()
    network = untrained(
        arguments.architecture, kind="classifier", image_size=data.image_size, normalization="half", classes=10
    )
    fct.score(network, data.subset(slice(64)), engine)  # warm-up
    started = time.perf_counter()
    fct.score(network, data, engine)
    scored = len(data) / (time.perf_counter() - started)

    images, features = DeviceImages(data, engine.device), feature_extractor(network).to(engine.device).eval()
    started = time.perf_counter()
    engine.forward(features, images.pixels, len(images))
    inferred = len(data) / (time.perf_counter() - started)

    generator = engine.generator("loop")
    started = time.perf_counter()
    with torch.inference_mode():
        for row in range(arguments.loop_images):
            image = images.pixels(torch.tensor([row]))
            where = features(image)
            for _ in range(fct.draws):
                float(feature_consistency(where, features(transform(image, fct.transformations, generator))))
    looped = arguments.loop_images / (time.perf_counter() - started)

    passes = fct.draws + 1
    print(f"device {engine.device}, {torch.get_num_threads()} threads, {arguments.architecture}, {len(data)} images")
    print(f"scored            {scored:8.0f} images/s ({scored * passes:.0f} forward passes/s)")
    print(f"inference         {inferred:8.0f} images/s")
    print(f"loop over images  {looped:8.0f} images/s")
    print(f"speed-up          {scored / looped:8.1f}")


if __name__ == "__main__":
    main()
