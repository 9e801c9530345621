"""The user's guess: every form that is read, every form that is refused, and how a set carries it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from sanitize.data import ImageSet, load_images
from sanitize.data.suspected import load_suspected
from sanitize.errors import DataError


def text(path):
    path.write_text("3\n\n  1  # twice\n1\n")


def as_json(path):
    path.write_text(json.dumps([3, 1]))


def integers(path):
    np.save(path, np.array([1, 3], dtype=np.uint8))


def mask(path):
    np.save(path, np.array([False, True, False, True, False]))


@pytest.mark.parametrize(
    ("name", "write"),
    [("rows.txt", text), ("rows", text), ("rows.JSON", as_json), ("a.npy", integers), ("b.npy", mask)],
)
def test_every_form_names_the_same_rows(tmp_path, name, write):
    write(tmp_path / name)
    suspected = load_suspected(tmp_path / name, 5)
    assert suspected.dtype == torch.bool
    assert suspected.tolist() == [False, True, False, True, False]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.txt", "1\ntwo\n", "line 2: 'two'"),
        ("rows.txt", "", "names no suspected image"),
        ("rows.txt", "5\n", "row 5, and the data has rows 0 to 4"),
        ("rows.txt", "-1\n", "row -1"),
        ("rows.json", "[1, true]", "not a list of row numbers"),
        ("rows.json", '{"rows": [1]}', "not a list of row numbers"),
        ("rows.json", "[1,", "cannot be read"),
        ("rows.npy", "not an array", "cannot be read"),
    ],
)
def test_wrong_files_are_refused_with_a_reason(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        load_suspected(tmp_path / name, 5)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([True, False]), "mask of shape"),
        (np.array([1.0, 2.0]), "float64"),
        (np.array([[1], [2]]), r"shape \(2, 1\)"),
        (np.array([], dtype=np.int64), "names no suspected image"),
        (np.zeros(5, dtype=bool), "names no suspected image"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, array, message):
    np.save(tmp_path / "rows.npy", array)
    with pytest.raises(DataError, match=message):
        load_suspected(tmp_path / "rows.npy", 5)


def test_pickled_arrays_are_never_loaded(tmp_path):
    np.save(tmp_path / "rows.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):
        load_suspected(tmp_path / "rows.npy", 5)


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        load_suspected(tmp_path / "none.txt", 5)


def guessed(rows: list[int]) -> ImageSet:
    data = load_images("digits#0:6")
    suspected = torch.zeros(6, dtype=torch.bool)
    suspected[rows] = True
    return ImageSet(images=data.images, labels=data.labels, suspected=suspected)


def test_a_subset_keeps_the_guess():
    assert guessed([1, 4]).subset(torch.tensor([4, 0, 1])).suspected.tolist() == [True, False, True]
    assert load_images("digits#0:6").subset(slice(2)).suspected is None


def test_the_guess_is_part_of_the_digest():
    data = load_images("digits#0:6")
    without = ImageSet(images=data.images, labels=data.labels)
    assert without.sha256 == data.sha256
    assert len({without.sha256, guessed([]).sha256, guessed([1]).sha256, guessed([2]).sha256}) == 4


@pytest.mark.parametrize("suspected", [torch.zeros(5, dtype=torch.bool), torch.zeros(6)])
def test_a_guess_of_wrong_length_or_type_is_refused(suspected):
    with pytest.raises(DataError, match="suspected images"):
        ImageSet(images=load_images("digits#0:6").images, suspected=suspected)
