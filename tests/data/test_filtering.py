"""What is left of a data set: the same bytes, rows and columns, whatever the form of the source."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from sanitize.data import load_images
from sanitize.data.filtering import Original
from sanitize.errors import DataError

KEEP = torch.arange(20) % 3 != 0


def picture(number: int, size: int, form: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (size, size), (number, 2 * number, 50)).save(stream, format=form)
    return stream.getvalue()


@pytest.fixture
def parts(tmp_path):
    """Two files with JPEGs of several sizes, several row groups, a column of their own, one column each alone."""
    folder = tmp_path / "parts"
    folder.mkdir()
    for part in range(2):
        rows = range(15 * part, 15 * part + 15)
        table = pa.table(
            {
                "image": [{"bytes": picture(row, 8 + row % 3, "JPEG"), "path": f"{row}.jpg"} for row in rows],
                "label": [row % 4 for row in rows],
                "caption": [f"image {row}" for row in rows],
                f"only{part}": [0] * 15,
            }
        )
        pq.write_table(table, folder / f"{part}.parquet", row_group_size=4)
    return folder


def test_rows_of_parquet_keep_their_bytes_and_columns(parts, tmp_path):
    source = f"{parts}#5:25"
    file = Original(source).write(KEEP, tmp_path / "clean" / "images.parquet")
    left = pq.read_table(file).to_pydict()
    rows = (torch.arange(5, 25)[KEEP]).tolist()
    assert set(left) == {"image", "label", "caption"}
    assert left["caption"] == [f"image {row}" for row in rows]
    assert [image["bytes"] for image in left["image"]] == [picture(row, 8 + row % 3, "JPEG") for row in rows]
    looked_at, again = load_images(source, image_size=8), load_images(str(file), image_size=8)
    assert torch.equal(again.images, looked_at.images[KEEP])
    assert torch.equal(again.labels, looked_at.labels[KEEP])


@pytest.mark.parametrize("form", ["npz", "folder", "digits"])
def test_other_forms_keep_their_pixels_in_their_own_size(form, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 24, 3), dtype=np.uint8)
    source = str(tmp_path / "set.npz")
    if form == "npz":
        np.savez(source, images=pixels, labels=np.arange(20) % 4)
    elif form == "folder":
        source = str(tmp_path / "set")
        for number, image in enumerate(pixels):
            (tmp_path / "set" / str(number % 4)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / "set" / str(number % 4) / f"{number}.png")
    else:
        source = "digits#0:20"
    whole = load_images(source)
    left = load_images(str(Original(source).write(KEEP, tmp_path / "images.parquet")))
    assert left.sha256 == whole.subset(KEEP).sha256
    assert left.class_names == whole.class_names


def test_unreadable_pictures_are_not_among_those_that_stay(tmp_path):
    for number in range(20):
        content = b"broken" if number in (3, 4) else picture(number, 24, "PNG")
        (tmp_path / f"{number:02}.png").write_bytes(content)
    with pytest.raises(DataError, match="2 of 20 images"):
        Original(str(tmp_path))
    original = Original(str(tmp_path), skip_unreadable=True)
    left = load_images(str(original.write(KEEP, tmp_path / "out" / "images.parquet")))
    stay = [number for number in range(20) if KEEP[number] and number != 4]
    assert left.images[:, 0, 0, 0].tolist() == stay


def test_a_downloaded_set_is_read_from_where_it_was_copied_to(parts, tmp_path):
    file = Original("models:/scraped/1#:20", parts).write(KEEP, tmp_path / "images.parquet")
    assert pq.read_metadata(file).num_rows == int(KEEP.sum())


def test_pictures_of_several_sizes_that_are_not_in_parquet_are_refused(tmp_path):
    for size in (8, 9):
        (tmp_path / f"{size}.png").write_bytes(picture(1, size, "PNG"))
    with pytest.raises(DataError):
        Original(str(tmp_path))
