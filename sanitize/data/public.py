"""Public data sets by torchvision's name: `torchvision:CIFAR10`, `torchvision:CIFAR10/test`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sanitize.data.decoding import Decoded, Decoder, Payload
from sanitize.data.rows import Rows
from sanitize.errors import DataError
from sanitize.types import did_you_mean


def torchvision_root() -> Path:
    """Folder of downloaded data sets: the environment variable TORCHVISION_DATA, else one in the user's cache."""
    return Path(os.environ.get("TORCHVISION_DATA") or Path.home() / ".cache" / "sanitize" / "torchvision")


def dataset_names() -> list[str]:
    """Names of torchvision's data sets that it can download."""
    from torchvision import datasets

    known = ((name, getattr(datasets, name)) for name in datasets.__all__)
    return sorted(name for name, kind in known if {"root", "download"} <= _options(kind).keys())


def read_torchvision(
    name: str, *, rows: Rows, decoder: Decoder
) -> tuple[Decoded, Tensor | None, tuple[str, ...] | None]:
    """Load a public data set, downloading it first where it is missing.

    Args:
        name: ``NAME`` (its training split) or ``NAME/SPLIT``.
        rows: Which rows.
        decoder: Of the images.

    Returns:
        Images; labels (N,) int64 of all rows, also unreadable ones; class names or None.

    Raises:
        DataError: The name or split is unknown, the download fails, or the set is none of labelled images.
    """
    source = decoder.source
    dataset = _open(name, source)
    indices = rows.indices(len(dataset), source)
    labels: list[int] = []

    def pictures() -> Iterator[tuple[str, Payload]]:
        for row in indices:
            image, label = dataset[int(row)]
            if not isinstance(label, int | np.integer):
                raise DataError(f"{source} is no set of labelled images: row {row} has a {type(label).__name__}.")
            labels.append(int(label))
            yield f"row {row}", image

    images = decoder.decode(pictures(), len(indices))
    names = getattr(dataset, "classes", None)
    return images, torch.tensor(labels), tuple(map(str, names)) if names else None


def _open(name: str, source: str) -> Any:
    from torchvision import datasets

    name, _, split = name.partition("/")
    if name not in dataset_names():
        raise DataError(f"torchvision has no data set {name!r} ({source}). {did_you_mean(name, dataset_names())}")
    kind = getattr(datasets, name)
    options = _options(kind)
    chosen: dict[str, Any] = {}
    if "train" in options:
        if split not in ("", "train", "test"):
            raise DataError(f"{source}: {name} has the splits train and test.")
        chosen["train"] = split != "test"
    elif "split" in options:
        chosen["split"] = split or "train"
    elif split:
        raise DataError(f"{source}: {name} has no splits; name it as torchvision:{name}.")
    root = torchvision_root()
    try:
        root.mkdir(parents=True, exist_ok=True)
        return kind(root=str(root), download=True, **chosen)
    except Exception as error:  # torchvision's downloads and checks raise errors of many kinds
        raise DataError(
            f"{source} could not be loaded ({type(error).__name__}: {error}). If this machine has no access to the "
            f"network, place the files under {root} or name their folder in TORCHVISION_DATA."
        ) from error


def _options(kind: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(kind).parameters)
