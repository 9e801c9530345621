"""The user's guess of which images are poisoned: a file of row numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sanitize.errors import DataError

FORMS = "a text file with one row number a line, a .json list of row numbers, or a .npy of row numbers or of bool"


def load_suspected(path: Path, count: int) -> Tensor:
    """Read which of `count` images are suspected; rows count from 0, in the order of the data (after its row slice).

    Args:
        path: A text file (one row number a line; empty lines and what follows a ``#`` are ignored), a ``.json`` list,
            or a ``.npy`` of integers, or of bool with one value an image. No pickles.
        count: How many images the data has.

    Returns:
        (count,) bool, True where suspected; for `ImageSet.suspected`.

    Raises:
        DataError: The file is missing, unreadable or empty, or names rows that the data does not have.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "suspected.txt"
        >>> _ = file.write_text("1\\n3  # the white square\\n")
        >>> load_suspected(file, 5).tolist()
        [False, True, False, True, False]
    """
    try:
        rows = _READERS.get(path.suffix.lower(), _read_text)(path)
    except DataError:
        raise
    except (OSError, ValueError, EOFError) as error:  # damaged .npy files raise either of the last two
        raise DataError(f"the suspected images cannot be read from {path} ({error}). Give {FORMS}.") from error
    if rows.dtype == np.bool_:
        if rows.shape != (count,):
            raise DataError(f"{path} has a mask of shape {rows.shape}, and the data has {count} images. Give {FORMS}.")
        rows = np.flatnonzero(rows)
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        raise DataError(f"{path} holds {rows.dtype} of shape {rows.shape} where row numbers are expected: {FORMS}.")
    if not rows.size:
        raise DataError(f"{path} names no suspected image. Leave it out to let the method find them.")
    low, high = int(rows.min()), int(rows.max())
    if low < 0 or high >= count:
        raise DataError(
            f"{path} names row {low if low < 0 else high}, and the data has rows 0 to {count - 1}. "
            "Rows count from 0, after the row slice of the data."
        )
    suspected = torch.zeros(count, dtype=torch.bool)
    suspected[torch.from_numpy(rows.astype(np.int64))] = True
    return suspected


def _read_text(path: Path) -> np.ndarray:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            rows.append(int(text))
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {text[:40]!r} is not a row number. Give {FORMS}.") from error
    return np.array(rows, dtype=np.int64)


def _read_json(path: Path) -> np.ndarray:
    rows = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(rows, list) or not all(isinstance(row, int) and not isinstance(row, bool) for row in rows):
        raise DataError(f"{path} is not a list of row numbers. Give {FORMS}.")
    return np.array(rows, dtype=np.int64)


def _read_npy(path: Path) -> np.ndarray:
    return np.asarray(np.load(path, allow_pickle=False))


_READERS = {".json": _read_json, ".npy": _read_npy}
