"""Parquet that is written is read back byte by byte."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from sanitize.data import ImageSet, load_images, writing
from sanitize.data.writing import write_parquet
from sanitize.errors import DataError


def noise(count: int = 7, size: int = 9, **values) -> ImageSet:
    pixels = torch.randint(256, (count, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageSet(images=pixels, **values)


@pytest.mark.parametrize(
    "images",
    [
        noise(),
        noise(labels=torch.tensor([3, 0, 1, 2, 2, 2, 0])),
        noise(labels=torch.tensor([3, 0, 1, 2, 2, 2, 0]), class_names=("cat", "dög", "eel", "fox")),
        noise(count=1, size=1),
    ],
    ids=["unlabelled", "labels", "names", "one pixel"],
)
def test_pixels_labels_and_names_come_back(images: ImageSet, tmp_path: Path) -> None:
    path = write_parquet(images, tmp_path / "new" / "poisoned.parquet")
    again = load_images(str(path))
    assert torch.equal(again.images, images.images)
    assert again.class_names == images.class_names
    assert again.sha256 == images.sha256
    assert [file.name for file in path.parent.iterdir()] == ["poisoned.parquet"]


def test_slices_of_a_set_that_is_not_contiguous(tmp_path: Path) -> None:
    images = noise(count=12, labels=torch.arange(12)).subset(slice(1, None, 3))
    transposed = ImageSet(images=images.images.transpose(2, 3), labels=images.labels)
    again = load_images(str(write_parquet(transposed, tmp_path / "set.parquet")))
    assert torch.equal(again.images, images.images.transpose(2, 3))
    assert again.labels.tolist() == [1, 4, 7, 10]


def test_row_groups_bound_what_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "ROWS", 5)
    images = noise(count=12, labels=torch.arange(12))
    path = write_parquet(images, tmp_path / "set.parquet")
    metadata = pq.ParquetFile(path).metadata
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [5, 5, 2]
    assert load_images(str(path)).sha256 == images.sha256
    assert load_images(f"{path}#6:11").labels.tolist() == [6, 7, 8, 9, 10]


def test_the_file_is_as_hugging_face_has_it(tmp_path: Path) -> None:
    images = noise(labels=torch.arange(7), class_names=tuple("abcdefg"))
    schema = pq.ParquetFile(write_parquet(images, tmp_path / "set.parquet")).schema_arrow
    assert str(schema.field("image").type) == "struct<bytes: binary, path: string>"
    assert str(schema.field("label").type) == "int64"
    assert b'"names": ["a", "b"' in schema.metadata[b"huggingface"]


def test_an_old_file_is_replaced_and_the_same_set_gives_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    path.write_bytes(b"old")
    first = write_parquet(noise(), path).read_bytes()
    assert first == write_parquet(noise(), path).read_bytes() != b"old"
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    path.write_bytes(b"old")
    bad = noise(labels=torch.tensor([math.nan] * 7))  # refused while rows are written
    with pytest.raises(Exception, match=r"(?i)nan|integer"):
        write_parquet(bad, path)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["set.parquet"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        write_parquet(noise(), tmp_path / "file" / "set.parquet")
