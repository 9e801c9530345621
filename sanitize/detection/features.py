"""Features of all images and their clusters, in memory that does not grow with the number of images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sanitize.data import DeviceImages, ImageSet
from sanitize.errors import DataError
from sanitize.functional.clusters import Clusters, cluster
from sanitize.suspects.networks import Network
from sanitize.training import Engine

_BATCHES = 64  # that go through the network before their features are put away
_CHUNK = 4096  # rows of features that are looked at together
_SAMPLE = 20_000  # images, below which the centres are fitted to all of them
_PER_CLUSTER = 40  # images of the sample, beyond that
_COLLAPSED = 1e-5  # spread of normalised features


def features_of(
    network: Network, data: ImageSet, images: DeviceImages, engine: Engine, *, batch_size: int, purpose: str
) -> Tensor:
    """Features of all images.

    Args:
        network: An encoder.
        data: The images; with a `Room`, features that do not fit lie in a file, too.
        images: The same on the device.
        engine: Device and precision.
        batch_size: Images that go through the network together.
        purpose: Who asks, for messages.

    Returns:
        (N, D) float32 on the CPU.

    Raises:
        DataError: They are not finite, or all the same.
    """
    shape = (len(images), network.spec.output_size)
    features = data.room.empty(shape, torch.float32) if data.room else torch.empty(shape)
    outputs_into(features, network, images, engine, batch_size=batch_size)
    _require_usable(features, purpose)
    return features


def outputs_into(outputs: Tensor, network: Network, images: DeviceImages, engine: Engine, *, batch_size: int) -> None:
    """Fill (N, D) `outputs` with those of a network for all images, a few batches at a time.

    Args:
        outputs: On the CPU, perhaps in a file.
        network: In eval mode afterwards.
        images: On the device.
        engine: Device and precision.
        batch_size: Images that go through the network together.
    """
    for rows in torch.split(torch.arange(len(images)), _BATCHES * batch_size):
        start = int(rows[0])

        def pixels(chosen: Tensor, start: int = start) -> Tensor:
            return images.pixels(chosen + start)

        outputs[start : start + len(rows)] = engine.forward(network, pixels, len(rows), batch_size=batch_size)


def clusters_of(features: Tensor, count: int, *, seed: int) -> Clusters:
    """Clusters of all images: k-means on a sample where there are many, and the nearest centre for the rest.

    Args:
        features: (N, D).
        count: Of the clusters. The sample has 40 images for each, and 20,000 at least.
        seed: Of sample and k-means.
    """
    size = max(_SAMPLE, _PER_CLUSTER * count)
    if len(features) <= size:
        return cluster(features, count, seed=seed)
    sample = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:size]
    centres = cluster(features[sample], count, seed=seed).centres
    near = [torch.cdist(functional.normalize(part), centres).min(dim=1) for part in torch.split(features, _CHUNK)]
    return Clusters(centres, torch.cat([part.indices for part in near]), torch.cat([part.values for part in near]))


def _require_usable(features: Tensor, purpose: str) -> None:
    total = squares = torch.zeros(features.shape[1], dtype=torch.float64)
    for part in torch.split(features, _CHUNK):
        if not bool(torch.isfinite(part).all()):
            raise DataError(f"{purpose}: features are not finite for some images. Check --normalization and --data.")
        normalised = functional.normalize(part.double())
        total, squares = total + normalised.sum(dim=0), squares + normalised.square().sum(dim=0)
    variance = squares / len(features) - (total / len(features)).square()
    if float(variance.max()) < _COLLAPSED**2:
        raise DataError(
            f"{purpose}: all images have the same features. They have collapsed, and say nothing. Use an encoder that "
            "was trained normally on this data."
        )
