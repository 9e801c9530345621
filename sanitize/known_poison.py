"""What is known to be poisoned, for the evaluation alone: from a drill in the registry, or from a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sanitize.data import ImageSet
from sanitize.errors import DataError
from sanitize.tracking import Store
from sanitize.tracking.truth import read_truth


def known_poison(named: str, data: ImageSet, store: Store) -> Tensor:
    """Which images are poisoned.

    Args:
        named: ``models:/NAME/VERSION`` or the file of a drill, or a ``truth.npz`` or its folder.
        data: The images that it is about; the truth counts the unreadable ones of the data, too.
        store: MLflow, where a drill keeps its truth.

    Returns:
        (N,) bool.

    Raises:
        DataError: It cannot be read, or is about other data.
    """
    labels = None
    file = _truth_file(named)
    if file is not None:
        poisoned = torch.from_numpy(_array(file, "poisoned", np.bool_, ()))
    else:
        path = Path(named).expanduser()
        if not named.startswith("models:/") and not path.is_file():
            raise DataError(
                f"--truth {named}: there is no such file, folder with a truth.npz, or models:/NAME/VERSION."
            )
        record = read_truth(store, named if named.startswith("models:/") else path)
        if record.poisoned is None:
            raise DataError(f"--truth {named}: that attack poisoned no data.")
        poisoned, labels = record.poisoned, record.labels
    about = f"--truth {named} is not about {data.uri}"
    whole = len(data) + len(data.unreadable)
    if len(poisoned) != whole:
        raise DataError(f"{about}: it knows {len(poisoned)} images, and the data has {whole}.")
    poisoned = poisoned[data.rows]
    if labels is not None and data.labels is not None:
        labels = labels[data.rows]
        if not torch.equal(labels[~poisoned], data.labels[~poisoned]):
            raise DataError(f"{about}: the labels of images that are not poisoned differ.")
    return poisoned


def known_boxes(named: str, data: ImageSet) -> Tensor | None:
    """Where the triggers are, (N, 4) int64 (top, left, height, width), if a truth.npz tells it.

    Args:
        named: See `known_poison`.
        data: See `known_poison`.

    Raises:
        DataError: It cannot be read, or is about other data.
    """
    file = _truth_file(named)
    if file is None:
        return None
    with np.load(file, allow_pickle=False) as arrays:
        if "boxes" not in arrays:
            return None
    boxes = _array(file, "boxes", np.int64, (4,))
    whole = len(data) + len(data.unreadable)
    if len(boxes) != whole:
        raise DataError(f"--truth {file}: `boxes` has {len(boxes)} rows, and the data has {whole} images.")
    return torch.from_numpy(boxes)[data.rows]


def _truth_file(named: str) -> Path | None:
    path = Path(named).expanduser()
    arrays = path / "truth.npz" if path.is_dir() else path
    return arrays if not named.startswith("models:/") and arrays.suffix == ".npz" else None


def _array(path: Path, name: str, kind: type, columns: tuple[int, ...]) -> np.ndarray:
    wanted = f"{np.dtype(kind)} (N, 4)" if columns else f"{np.dtype(kind)} (N,)"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            values = np.asarray(arrays[name])
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(
            f"--truth {path} has no readable array `{name}` ({error}): {wanted}, one row an image."
        ) from error
    if values.dtype != kind or values.ndim != 1 + len(columns) or values.shape[1:] != columns:
        raise DataError(f"--truth {path}: `{name}` is {values.dtype} {values.shape}, not {wanted}.")
    return values
