"""Where images come from: one function for every form of DATA, each ending as one `ImageSet`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sanitize.data.decoding import SUFFIXES as PICTURE_SUFFIXES
from sanitize.data.decoding import Decoded, Decoder, resize_images
from sanitize.data.images import ImageSet
from sanitize.data.npz import read_npz
from sanitize.data.parquet import SUFFIXES as PARQUET_SUFFIXES
from sanitize.data.parquet import parquet_files, read_parquet
from sanitize.data.public import read_torchvision
from sanitize.data.room import Room
from sanitize.data.rows import Rows
from sanitize.errors import ConfigError, DataError

FORMS = (
    "a Parquet file or folder (Hugging Face convention: `image` struct<bytes, path>, optional `label`), an image "
    "folder (class sub-folders, or flat = unlabelled), an .npz (keys images, labels), torchvision:CIFAR10, digits, "
    "runs:/<id>/<path> or models:/<name>/<version>; each may end in a row slice, #0:500"
)
DIGITS_SIZE = 32

Loaded = tuple[Decoded, Tensor | None, tuple[str, ...] | None]
"""Images, labels of all rows, class names."""


def load_images(
    source: str,
    *,
    image_size: int | None = None,
    resolve: Callable[[str], Path] | None = None,
    seed: int = 0,
    skip_unreadable: bool = False,
    room: Room | None = None,
) -> ImageSet:
    """Load images of any form of DATA into memory.

    Args:
        source: A Parquet file or folder, an image folder, an ``.npz``, ``torchvision:NAME[/SPLIT]``, ``digits``,
            ``runs:/...`` or ``models:/...``. A suffix selects rows: ``#start:stop`` or ``#start:stop:step`` as in
            Python (an image folder is in class order: a step takes some of each class), ``#~count`` a random sample.
        image_size: Height and width in pixels: shorter side, then centre crop; bilinear with antialias. None keeps
            the size, which must be square and the same for all (``digits``: 32).
        resolve: Downloads what an MLflow URI names and returns its path.
        seed: Of a ``#~count`` sample; nothing else is random.
        skip_unreadable: Leave out images that cannot be decoded, and list them in ``unreadable``; else one of them is
            an error, and so is it if there are no others.
        room: For images that may not fit in memory; None for no limit.

    Returns:
        The set; its ``uri`` is `source` as given.

    Raises:
        DataError: The source is none of these, is empty, corrupt, or has unfit labels.
        ConfigError: `image_size` is not positive, or an MLflow URI is given without `resolve`.

    Example:
        >>> images = load_images("digits#0:140")
        >>> images.images.shape, images.class_names[:2]
        (torch.Size([140, 3, 32, 32]), ('0', '1'))
    """
    if image_size is not None and image_size < 1:
        raise ConfigError(f"image size {image_size} is not a number of pixels; give 1 or more.")
    name, rows = Rows.split(source, seed)
    decoder = Decoder(source=source, image_size=image_size, skip_unreadable=skip_unreadable, room=room)
    if name == "digits":
        loaded = _read_digits(rows, decoder)
    elif name.startswith("torchvision:"):
        loaded = read_torchvision(name.partition(":")[2], rows=rows, decoder=decoder)
    elif name.startswith(("runs:/", "models:/")):
        if resolve is None:
            raise ConfigError(f"{source} is an MLflow URI, and no tracking store was given to fetch it from.")
        loaded = _read_path(_without_links(resolve(name), source), rows, decoder)
    else:
        loaded = _read_path(Path(name).expanduser(), rows, decoder)
    decoded, labels, class_names = loaded
    _check_labels(labels, class_names, source)
    images = ImageSet(
        images=decoded.images, class_names=class_names, uri=source, unreadable=decoded.unreadable, room=room
    )
    return images if labels is None else replace(images, labels=labels[images.rows])


def _read_path(path: Path, rows: Rows, decoder: Decoder) -> Loaded:
    source = decoder.source
    try:
        if path.is_dir():
            return _read_folder(path, rows, decoder)
        if not path.exists():
            raise DataError(f"{source} does not exist. Data is {FORMS}.")
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error}. Check its name and permissions.") from error
    suffix = path.suffix.lower()
    if suffix in PARQUET_SUFFIXES or head == b"PAR1":
        return read_parquet([path], rows=rows, decoder=decoder)
    if suffix == ".npz":
        return read_npz(path, rows=rows, decoder=decoder)
    raise DataError(f"{source} is a file of no form that is read. Data is {FORMS}.")


def _without_links(path: Path, source: str) -> Path:
    # Whoever made the data set would choose which files of this machine are read.
    for item in (path, *path.rglob("*")):
        if item.is_symlink():
            raise DataError(f"{source} has a link ({item.name}). Links in what others made are not followed.")
    return path


def _read_folder(folder: Path, rows: Rows, decoder: Decoder) -> Loaded:
    source = decoder.source
    entries = _visible(folder)
    # A download often wraps the data in a folder of its own; a single folder is no set of classes.
    while len(entries) == 1 and entries[0].is_dir():
        folder, entries = entries[0], _visible(entries[0])
    if files := parquet_files(folder):
        return read_parquet(files, rows=rows, decoder=decoder)
    if len(entries) == 1 and entries[0].suffix.lower() == ".npz":
        return read_npz(entries[0], rows=rows, decoder=decoder)
    flat = [path for path in entries if _is_picture(path)]
    classes = [path for path in entries if path.is_dir()]
    if flat and classes:
        raise DataError(
            f"{source} holds both images ({flat[0].name}) and folders ({classes[0].name}): unlabelled images lie flat, "
            "labelled ones in one folder a class. Separate them."
        )
    pictures, labels = flat, None
    if not flat:
        inside = [[path for path in _visible(folder) if _is_picture(path)] for folder in classes]
        pictures = [path for paths in inside for path in paths]
        labels = [index for index, paths in enumerate(inside) for _ in paths]
        if not pictures:
            raise DataError(f"{source} holds no images that are read. Data is {FORMS}.")
        for class_folder in classes:
            if any(path.is_dir() for path in _visible(class_folder)):
                raise DataError(
                    f"{class_folder.name} in {source} holds folders again, where images of one class are expected. "
                    f"Name the split itself, for example {folder / classes[0].name}."
                )
    indices = rows.indices(len(pictures), source)
    names = ((str(pictures[row].relative_to(folder)), pictures[row]) for row in indices)
    images = decoder.decode(names, len(indices))
    if labels is None:
        return images, None, None
    return images, torch.tensor(labels)[torch.from_numpy(indices)], tuple(path.name for path in classes)


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX")))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES and path.is_file()


def _read_digits(rows: Rows, decoder: Decoder) -> Loaded:
    from sklearn.datasets import load_digits  # scikit-learn takes a second to import

    digits = load_digits()
    indices = rows.indices(len(digits.images), decoder.source)
    grey = np.rint(digits.images[indices] * (255 / 16)).astype(np.uint8)
    images = torch.from_numpy(np.repeat(grey[:, None], 3, axis=1))
    labels = torch.from_numpy(digits.target[indices].astype(np.int64))
    resized = resize_images(images, decoder.image_size or DIGITS_SIZE, decoder.source)
    return Decoded(resized), labels, tuple(map(str, digits.target_names))


def _check_labels(labels: Tensor | None, class_names: tuple[str, ...] | None, source: str) -> None:
    if labels is None:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        bad = int((labels < 0).sum())
        raise DataError(f"{bad} of {len(labels)} labels of {source} are negative (lowest {low}); classes count from 0.")
    limit = math.inf if class_names is None else len(class_names)
    if high >= limit:
        raise DataError(f"{source} has a label {high}, but only {limit} class names (0 to {limit - 1}).")
