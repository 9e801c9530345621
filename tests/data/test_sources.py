"""Every form of DATA from real files that the test writes, whole and damaged."""

from __future__ import annotations

import contextlib
import io
import json
import os
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from sanitize.data import ImageSet, load_images, npz
from sanitize.data.public import dataset_names
from sanitize.data.room import Room
from sanitize.errors import ConfigError, DataError

SHARED = Path(os.environ.get("SANITIZE_DATA", Path(__file__).parents[3] / "shared" / "data"))
COUNT = 20
PIXELS = np.random.default_rng(1).integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8)
IMAGES = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
LABELS = [row % 3 for row in range(COUNT)]
NAMES = ["ant", "bee", "cat"]


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def _parquet(
    path: Path,
    rows: slice = slice(None),
    *,
    labels: Any = LABELS,
    label: str = "label",
    image: str = "image",
    names: list[str] | None = NAMES,
    payloads: list[bytes | None] | None = None,
    **options: Any,
) -> Path:
    structs = [{"bytes": item, "path": None} for item in payloads or [_png(pixels) for pixels in PIXELS]]
    columns: dict[str, Any] = {
        image: pa.array(structs, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        "other": pa.array(range(len(structs))),
    }
    if labels is not None:
        columns[label] = pa.array(labels)
    features: dict[str, Any] = {image: {"_type": "Image"}}
    if names:
        features[label] = {"names": names, "_type": "ClassLabel"}
    table = pa.table(columns).slice(*rows.indices(COUNT)[:1]) if rows.start else pa.table(columns)
    table = table.slice(0, (rows.stop or COUNT) - (rows.start or 0))
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **({"row_group_size": 6} | options))
    return path


def _folder(root: Path) -> Path:
    for row, pixels in enumerate(PIXELS):
        (root / NAMES[LABELS[row]]).mkdir(parents=True, exist_ok=True)
        (root / NAMES[LABELS[row]] / f"{row:02}.png").write_bytes(_png(pixels))
    return root


def _check(images: ImageSet, rows: Any = slice(None)) -> None:
    assert torch.equal(images.images, IMAGES[rows])
    assert images.labels is not None and images.labels.dtype == torch.int64
    assert images.labels.tolist() == torch.tensor(LABELS)[rows].tolist()
    assert images.class_names == tuple(NAMES)


# --- Parquet


def test_a_parquet_file(tmp_path: Path) -> None:
    path = _parquet(tmp_path / "train.parquet")
    images = load_images(str(path))
    _check(images)
    assert images.uri == str(path) and images.image_size == 8


@pytest.mark.parametrize(
    ("suffix", "rows"),
    [
        ("#0:5", slice(0, 5)),
        ("#5:14", slice(5, 14)),
        ("#:7", slice(7)),
        ("#13:", slice(13, None)),
        ("#-4:", slice(-4, None)),
        ("#:-4", slice(None, -4)),
        ("#::3", slice(None, None, 3)),
        ("#2:15:4", slice(2, 15, 4)),
        ("#0:999", slice(0, 999)),
    ],
)
def test_slices_are_pythons_on_every_form(suffix: str, rows: slice, tmp_path: Path) -> None:
    _check(load_images(f"{_parquet(tmp_path / 'a.parquet')}{suffix}"), rows)
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=LABELS, class_names=NAMES)
    _check(load_images(f"{tmp_path / 'a.npz'}{suffix}"), rows)
    by_class = sorted(range(COUNT), key=lambda row: LABELS[row])
    _check(load_images(f"{_folder(tmp_path / 'folder')}{suffix}"), by_class[rows])
    assert len(load_images(f"digits{suffix}")) == len(range(1797)[rows])


def test_a_sample_follows_the_seed_and_repeats_no_row(tmp_path: Path) -> None:
    source = f"{_parquet(tmp_path / 'a.parquet')}#~8"
    first = load_images(source, seed=1)
    assert first.sha256 == load_images(source, seed=1).sha256 != load_images(source, seed=2).sha256
    rows = [next(row for row in range(COUNT) if torch.equal(IMAGES[row], image)) for image in first.images]
    assert rows == sorted(set(rows)) and len(rows) == 8
    with pytest.raises(DataError, match="asks for 21 of 20"):
        load_images(source.replace("~8", "~21"))


def test_only_the_row_groups_of_the_slice_are_read(tmp_path: Path) -> None:
    path = _parquet(tmp_path / "a.parquet", compression="none", use_dictionary=False)
    content = bytearray(path.read_bytes())
    last = pq.ParquetFile(path).metadata.row_group(3).column(0)
    content[last.data_page_offset : last.data_page_offset + last.total_compressed_size] = bytes(
        last.total_compressed_size
    )
    path.write_bytes(content)
    _check(load_images(f"{path}#0:18"), slice(18))
    with pytest.raises(DataError, match=r"row group 3 \(rows from 18\)|images in .* cannot be read"):
        load_images(str(path))


def test_a_folder_of_parquet_files_is_read_in_order(tmp_path: Path) -> None:
    _parquet(tmp_path / "data" / "train-00000-of-00002.parquet", slice(0, 9))
    _parquet(tmp_path / "data" / "train-00001-of-00002.parquet", slice(9, COUNT))
    (tmp_path / "README.md").write_text("about")
    _check(load_images(str(tmp_path)))
    _check(load_images(f"{tmp_path}#7:16"), slice(7, 16))
    _parquet(tmp_path / "data" / "test-00000-of-00001.parquet", slice(0, 9))
    with pytest.raises(DataError, match=r"several splits \(test, train\)"):
        load_images(str(tmp_path))


def test_files_of_different_sets_are_not_mixed(tmp_path: Path) -> None:
    _parquet(tmp_path / "a.parquet")
    _parquet(tmp_path / "b.parquet", names=["x", "y", "z"])
    with pytest.raises(DataError, match=r"a.parquet and b.parquet .*different columns or class names"):
        load_images(str(tmp_path))


def test_columns_by_other_names(tmp_path: Path) -> None:
    _check(load_images(str(_parquet(tmp_path / "a.parquet", image="img", label="fine_label"))))
    unlabelled = load_images(str(_parquet(tmp_path / "b.parquet", labels=None, names=None)))
    assert unlabelled.labels is None and unlabelled.class_names is None
    nameless = load_images(str(_parquet(tmp_path / "c.parquet", names=None)))
    assert nameless.labels is not None and nameless.class_names is None
    pq.write_table(pa.table({"image": ["a.png"]}), tmp_path / "d.parquet")
    with pytest.raises(DataError, match=r"no image column.*Its columns: image"):
        load_images(str(tmp_path / "d.parquet"))


@pytest.mark.parametrize(
    "metadata", [b"no json", b"[]", b'{"info": 3}', b'{"info": {"features": {"label": 7}}}', b"\xff"]
)
def test_odd_metadata_is_ignored(metadata: bytes, tmp_path: Path) -> None:
    path = _parquet(tmp_path / "a.parquet")
    pq.write_table(pq.read_table(path).replace_schema_metadata({"huggingface": metadata}), path)
    images = load_images(str(path))
    assert images.class_names is None and images.labels is not None


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.5] * COUNT, "integer class index in every row, got double"),
        (["ant"] * COUNT, "got string"),
        ([None] + [1] * (COUNT - 1), "1 empty"),
        ([-1, -1] + [1] * (COUNT - 2), "2 of 20 labels of .* negative"),
        ([3] * COUNT, "label 3, but only 3 class names"),
    ],
)
def test_unfit_labels_are_refused(labels: list[Any], message: str, tmp_path: Path) -> None:
    path = _parquet(tmp_path / "a.parquet", labels=labels)
    with pytest.raises(DataError, match=message):
        load_images(str(path))


def test_damaged_rows_are_named_by_their_place_in_the_file(tmp_path: Path) -> None:
    payloads: list[bytes | None] = [_png(pixels) for pixels in PIXELS]
    payloads[7], payloads[13] = payloads[7][:50], None
    path = _parquet(tmp_path / "a.parquet", payloads=payloads)
    with pytest.raises(DataError, match=r"2 of 15 images in .*#5: cannot be read: row 7: .*; row 13: no bytes"):
        load_images(f"{path}#5:")
    _check(load_images(f"{path}#:7"), slice(7))


def test_damaged_rows_are_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    payloads: list[bytes | None] = [_png(pixels) for pixels in PIXELS]
    payloads[7], payloads[13] = payloads[7][:50], None
    path = _parquet(tmp_path / "a.parquet", payloads=payloads)
    images = load_images(f"{path}#5:", skip_unreadable=True)
    left = [row for row in range(5, COUNT) if row not in (7, 13)]
    _check(images, left)
    assert [(picture.row, picture.name) for picture in images.unreadable] == [(2, "row 7"), (8, "row 13")]
    assert images.unreadable[1].reason.startswith("no bytes")
    assert (images.rows + 5).tolist() == left
    whole = load_images(str(_parquet(tmp_path / "b.parquet")))
    assert images.sha256 == whole.subset(torch.tensor(left)).sha256
    assert images.subset(slice(3, 6)).rows.tolist() == [0, 1, 2]
    with pytest.raises(DataError, match=r"2 of 2 images in .* cannot be read"):
        load_images(f"{path}#7:14:6", skip_unreadable=True)


def test_damaged_parquet_files(tmp_path: Path) -> None:
    path = _parquet(tmp_path / "a.parquet")
    content = path.read_bytes()
    for damage in (b"", b"PAR1", content[: len(content) // 2], b"x" * 100, content[:-20] + bytes(20)):
        path.write_bytes(damage)
        with pytest.raises(DataError, match=r"a.parquet is not a readable Parquet file"):
            load_images(str(path))


@pytest.mark.parametrize("name", ["a.parquet", "a.npz"])
def test_random_damage_never_escapes_as_another_error(name: str, tmp_path: Path) -> None:
    _parquet(tmp_path / "a.parquet")
    np.savez_compressed(tmp_path / "a.npz", images=PIXELS, labels=LABELS)
    content = np.frombuffer((tmp_path / name).read_bytes(), dtype=np.uint8)
    for seed in range(100):
        random, damaged = np.random.default_rng(seed), content.copy()
        damaged[random.integers(4, len(content), 20)] = random.integers(0, 256, 20)
        (tmp_path / name).write_bytes(damaged.tobytes())
        with contextlib.suppress(DataError):
            load_images(str(tmp_path / name))


def test_an_empty_parquet_file(tmp_path: Path) -> None:
    path = _parquet(tmp_path / "a.parquet")
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(DataError, match="holds no images"):
        load_images(str(path))


# --- folders


def test_class_folders_and_flat_folders(tmp_path: Path) -> None:
    root = _folder(tmp_path / "set")
    order = sorted(range(COUNT), key=lambda row: LABELS[row])
    (root / ".DS_Store").write_text("")
    (root / "ant" / "notes.txt").write_text("")
    _check(load_images(str(root)), order)
    flat = load_images(str(root / "bee"))
    assert flat.labels is None and torch.equal(flat.images, IMAGES[1::3])
    (root / "stray.png").write_bytes(_png(PIXELS[0]))
    with pytest.raises(DataError, match=r"both images .stray.png. and folders .ant."):
        load_images(str(root))


def test_a_wrapping_folder_is_opened(tmp_path: Path) -> None:
    _folder(tmp_path / "download" / "data")
    assert load_images(str(tmp_path / "download")).class_names == tuple(NAMES)
    np.savez(tmp_path / "a.npz", images=PIXELS)
    (tmp_path / "other").mkdir()
    (tmp_path / "a.npz").rename(tmp_path / "other" / "a.npz")
    assert len(load_images(str(tmp_path / "other"))) == COUNT


def test_splits_are_not_taken_for_classes(tmp_path: Path) -> None:
    _folder(tmp_path / "train")
    _folder(tmp_path / "val")
    with pytest.raises(DataError, match="no images that are read"):
        load_images(str(tmp_path))
    _folder(tmp_path / "train" / "ant" / "deeper")
    with pytest.raises(DataError, match=r"ant in .* holds folders again"):
        load_images(str(tmp_path / "train"))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    root = _folder(tmp_path)
    (root / "bee" / "04.png").write_bytes(b"broken")
    (root / "cat" / "05.png").write_bytes(_png(PIXELS[5])[:60])
    with pytest.raises(DataError, match=r"2 of 20 images in .*: bee/04.png: not a picture.*; cat/05.png: "):
        load_images(str(root))
    order = sorted(range(COUNT), key=lambda row: LABELS[row])
    images = load_images(str(root), skip_unreadable=True)
    _check(images, [row for row in order if row not in (4, 5)])
    assert [picture.row for picture in images.unreadable] == [order.index(4), order.index(5)]
    assert [picture.name for picture in images.unreadable] == ["bee/04.png", "cat/05.png"]


# --- npz


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (PIXELS, IMAGES),
        (PIXELS.transpose(0, 3, 1, 2), IMAGES),
        (PIXELS[..., 0], IMAGES[:, :1].expand(-1, 3, -1, -1)),
        (PIXELS[..., :1], IMAGES[:, :1].expand(-1, 3, -1, -1)),
        (PIXELS[..., :1].transpose(0, 3, 1, 2), IMAGES[:, :1].expand(-1, 3, -1, -1)),
    ],
)
@pytest.mark.parametrize("keys", [("images", "labels"), ("x", "y")])
@pytest.mark.parametrize("room", [None, 0])
def test_npz_layouts(
    pixels: np.ndarray, expected: Tensor, keys: tuple[str, str], room: int | None, tmp_path: Path
) -> None:
    np.savez_compressed(tmp_path / "a.npz", **{keys[0]: pixels, keys[1]: np.array(LABELS, dtype=np.uint8)[:, None]})
    images = load_images(str(tmp_path / "a.npz"), room=None if room is None else Room(room, tmp_path / "room"))
    assert torch.equal(images.images, expected)
    assert images.labels is not None and images.labels.tolist() == LABELS


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": PIXELS / 255}, "float64; uint8 from 0 to 255 is expected"),
        ({"images": PIXELS.astype(np.int64)}, "int64; uint8"),
        ({"pictures": PIXELS}, "no array `images`"),
        ({"images": np.zeros((2, 8, 8, 4), np.uint8)}, "no axis has 3 channels"),
        ({"images": np.zeros((2, 3, 8, 3), np.uint8)}, "either axis could be"),
        ({"images": np.zeros((8, 8), np.uint8)}, "must be"),
        ({"images": np.zeros((0, 8, 8, 3), np.uint8)}, "holds no images"),
        ({"images": np.zeros((2, 8, 6, 3), np.uint8)}, "8x6"),
        ({"images": PIXELS, "labels": np.zeros(3, np.int64)}, "one for each of the 20 images"),
        ({"images": PIXELS, "labels": np.zeros(COUNT)}, "must be integers"),
        ({"images": PIXELS, "labels": np.int64(3)}, "must be integers"),
        ({"images": PIXELS, "labels": np.array(LABELS) - 1}, "negative"),
        ({"images": np.array([{"a": 1}], dtype=object)}, "pickled objects are never loaded"),
    ],
)
@pytest.mark.parametrize("room", [None, 0])
def test_unfit_npz_files_are_refused(arrays: dict[str, Any], message: str, room: int | None, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_images(str(tmp_path / "a.npz"), room=None if room is None else Room(room, tmp_path / "room"))


class _Payload:
    """What an attacker puts into an array of objects: unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_an_npz_never_runs_code(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=np.array([_Payload(canary)] * COUNT, dtype=object))
    for room in (None, Room(0, tmp_path / "room")):
        with pytest.raises(DataError, match="never loaded"):
            load_images(str(tmp_path / "a.npz"), room=room)
    assert not canary.exists()


def test_damaged_npz_files(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, images=PIXELS)
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    for damage in (b"", b"text", path.read_bytes()[:300], bytes(content)):
        path.write_bytes(damage)
        for room in (None, Room(0, tmp_path / "room")):
            with pytest.raises(DataError, match=r"not a readable \.npz"):
                load_images(str(path), room=room)


def test_an_npz_that_announces_more_than_it_holds_or_than_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 8, 8, 3)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue() + bytes(1000))
    for room in (None, Room(0, tmp_path / "room")):
        with pytest.raises(DataError, match=r"not a readable \.npz"):
            load_images(str(tmp_path / "a.npz"), room=room)
    monkeypatch.setattr(npz, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match="more than fits"):
        load_images(str(tmp_path / "a.npz"))


# --- digits, torchvision, MLflow


def test_digits() -> None:
    images = load_images("digits")
    digits = load_digits()
    assert images.images.shape == (1797, 3, 32, 32) and images.uri == "digits"
    assert images.class_names == tuple("0123456789")
    assert images.labels is not None and images.labels.tolist() == digits.target.tolist()
    native = load_images("digits#:50", image_size=8).images
    assert torch.equal(native[:, 0], torch.from_numpy(np.rint(digits.images[:50] * 255 / 16)).byte())
    upsampled = torch.nn.functional.interpolate(native.float(), size=(32, 32), mode="bilinear")
    assert (images.images[:50].float() - upsampled).abs().max() <= 1


def _idx(path: Path, array: np.ndarray) -> None:
    header = (0x0800 + array.ndim).to_bytes(4) + b"".join(size.to_bytes(4) for size in array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def test_torchvision_by_name_and_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHVISION_DATA", str(tmp_path))
    grey = PIXELS[..., 0]
    for split, rows in (("train", slice(0, 12)), ("t10k", slice(12, 20))):
        _idx(tmp_path / "MNIST" / "raw" / f"{split}-images-idx3-ubyte", grey[rows])
        _idx(tmp_path / "MNIST" / "raw" / f"{split}-labels-idx1-ubyte", np.array(LABELS[rows]))
    train = load_images("torchvision:MNIST")
    assert torch.equal(train.images, torch.from_numpy(grey[:12])[:, None].expand(-1, 3, -1, -1))
    assert train.labels is not None and train.labels.tolist() == LABELS[:12]
    assert train.class_names is not None and len(train.class_names) == 10
    assert load_images("torchvision:MNIST/train#2:4").labels.tolist() == LABELS[2:4]
    test = load_images("torchvision:MNIST/test", image_size=16)
    assert test.images.shape == (8, 3, 16, 16) and test.uri == "torchvision:MNIST/test"
    with pytest.raises(DataError, match="splits train and test"):
        load_images("torchvision:MNIST/val")


def test_a_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHVISION_DATA", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # the discard port: the connection is refused
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # urlopen keeps its first opener, with the proxies of then
    with pytest.raises(DataError, match=r"torchvision:CIFAR10 could not be loaded.*TORCHVISION_DATA"):
        load_images("torchvision:CIFAR10")


def test_unknown_torchvision_names() -> None:
    with pytest.raises(DataError, match="Did you mean CIFAR10"):
        load_images("torchvision:CIFR10")
    with pytest.raises(DataError, match="no data set ''"):
        load_images("torchvision:")
    assert {"CIFAR10", "MNIST", "STL10", "SVHN"} <= set(dataset_names())


@pytest.mark.parametrize("uri", ["runs:/0123/data/train.parquet", "models:/scraped/1", "models:/scraped@good"])
def test_mlflow_uris_go_through_resolve(uri: str, tmp_path: Path) -> None:
    path = _parquet(tmp_path / "train.parquet")
    asked = []

    def resolve(name: str) -> Path:
        asked.append(name)
        return path

    images = load_images(f"{uri}#0:5", resolve=resolve)
    _check(images, slice(5))
    assert asked == [uri] and images.uri == f"{uri}#0:5"
    with pytest.raises(ConfigError, match="MLflow URI"):
        load_images(uri)


# --- whatever is none of these


def test_what_is_none_of_the_forms(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no data")
    (tmp_path / "empty").mkdir()
    for source in ("notes.txt", "missing.parquet", "empty", "empty#0:5", "x" * 400):
        with pytest.raises(DataError):
            load_images(str(tmp_path / source))
    with pytest.raises(DataError, match=r"a Parquet file or folder .*image folder .*npz.*torchvision:.*digits.*runs:/"):
        load_images(str(tmp_path / "notes.txt"))


def test_slices_that_select_nothing() -> None:
    for source, message in (("digits#5000:", "selects no rows"), ("digits#::0", "step"), ("digits#~0", "no rows")):
        with pytest.raises(DataError, match=message):
            load_images(source)
    with pytest.raises(ConfigError, match="image size 0"):
        load_images("digits", image_size=0)


def test_a_hash_in_a_file_name_is_no_slice(tmp_path: Path) -> None:
    _check(load_images(str(_parquet(tmp_path / "set#2.parquet"))))


def test_the_digest_is_of_content_alone(tmp_path: Path) -> None:
    digest = load_images(str(_parquet(tmp_path / "a.parquet"))).sha256
    np.savez(tmp_path / "b.npz", x=PIXELS, y=LABELS)
    assert load_images(str(tmp_path / "b.npz")).sha256 == digest
    assert load_images(str(_parquet(tmp_path / "c.parquet", row_group_size=3, compression="zstd"))).sha256 == digest
    changed = [1, *LABELS[1:]]
    assert load_images(str(_parquet(tmp_path / "d.parquet", labels=changed))).sha256 != digest
    unlabelled = load_images(str(_parquet(tmp_path / "e.parquet", labels=None, names=None)))
    assert unlabelled.sha256 != digest
    other = PIXELS.copy()
    other[3, 2, 1, 0] ^= 1
    np.savez(tmp_path / "f.npz", x=other, y=LABELS)
    assert load_images(str(tmp_path / "f.npz")).sha256 != digest


@pytest.mark.parametrize(
    ("name", "classes", "size"), [("cifar10", 10, 32), ("cifar100", 100, 32), ("imagenette96", 10, 96)]
)
def test_shared_parquet_files(name: str, classes: int, size: int) -> None:
    path = SHARED / f"{name}-test.parquet"
    if not path.is_file():
        pytest.skip(f"{path} is not on this machine (set SANITIZE_DATA)")
    images = load_images(f"{path}#995:1005")
    assert images.images.shape == (10, 3, size, size)
    assert images.class_names is not None and len(images.class_names) == classes
    row = pq.read_table(path).slice(999, 1).to_pylist()[0]
    expected = np.array(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB"))
    assert torch.equal(images.images[4], torch.from_numpy(expected).permute(2, 0, 1))
    assert images.labels is not None and images.labels[4] == row["label"]
    assert load_images(f"{path}#:3", image_size=24).images.shape == (3, 3, 24, 24)
