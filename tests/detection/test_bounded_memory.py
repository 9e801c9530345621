"""Memory of searches and trainings does not grow with the data set: in a process that is not given more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sanitize.data import DeviceImages, load_images
from sanitize.data.room import Room
from sanitize.detection import features
from sanitize.detection.features import clusters_of, features_of
from sanitize.errors import DataError
from sanitize.training import Engine
from tests.data.test_sources import _png
from tests.detection.bounded import SIZE
from tests.encoders import small_encoder

COUNT = 4000
BOUND = 48 << 20


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """Images that take 197 MB once they are decoded."""
    random = np.random.default_rng(0)
    pictures = [_png(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(200)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": pictures[row % 200], "path": None} for row in range(COUNT)], kind)
    path = tmp_path_factory.mktemp("many") / "many.parquet"
    pq.write_table(pa.table({"image": rows}), path, row_group_size=500)
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """The same in a NumPy archive, in their own size, few of them different."""
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (8, 8, 8, 3), dtype=np.uint8).repeat(SIZE // 8, 1).repeat(SIZE // 8, 2)
    path = tmp_path_factory.mktemp("archive") / "many.npz"
    np.savez_compressed(path, images=np.tile(small, (COUNT // 8, 1, 1, 1)))
    return path


def bounded(work: str, source: Path, room: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.detection.bounded", work, str(source), str(BOUND), room]
    # What is freed goes back at once: counted is what is asked for, not what the C library keeps in between.
    alone = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "1000000"}
    return subprocess.run(
        command, capture_output=True, text=True, env=alone, cwd=Path(__file__).parents[2], timeout=300
    )


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA bounds maps on Linux alone")
@pytest.mark.parametrize("work", ["search", "train"])
def test_a_set_several_times_as_large_as_the_bound(work, many):
    needed = COUNT * 3 * SIZE * SIZE
    assert needed > 3.9 * BOUND
    result = bounded(work, many, "file")
    assert result.returncode == 0, result.stderr[-2000:]
    images, in_files = map(int, result.stdout.split())
    assert images == COUNT
    assert in_files >= needed
    refused = bounded(work, many, "memory")  # the limit is one
    assert refused.returncode != 0
    assert "of memory" in refused.stderr


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA bounds maps on Linux alone")
def test_an_archive_several_times_as_large_as_the_bound(archive):
    result = bounded("read", archive, "file")
    assert result.returncode == 0, result.stderr[-2000:]
    images, in_files = map(int, result.stdout.split())
    assert images == COUNT
    assert in_files >= 2 * COUNT * 3 * SIZE * SIZE  # unpacked, and as they are used
    refused = bounded("read", archive, "memory")
    assert refused.returncode != 0
    assert "llocate" in refused.stderr


def test_images_and_features_in_a_file_are_those_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "_BATCHES", 2)
    plain = load_images("digits#0:100")
    folder = tmp_path / "set"
    folder.mkdir()
    for row, image in enumerate(plain.images):
        (folder / f"{row:03}.png").write_bytes(_png(image.permute(1, 2, 0).numpy()))
    (folder / "007.png").write_bytes(b"damaged")
    room = Room(10_000, tmp_path / "room")
    kept = load_images(str(folder), room=room, skip_unreadable=True)
    assert kept.sha256 == plain.subset(torch.arange(100) != 7).without_labels().sha256
    assert [file.stat().st_size for file in room.folder.iterdir()] == [100 * 3 * 32 * 32]
    made = []
    for data in (kept, plain.subset(torch.arange(100) != 7)):
        images = DeviceImages(data, "cpu")
        made.append(features_of(small_encoder(), data, images, Engine(device="cpu"), batch_size=16, purpose="it"))
    assert torch.equal(*made)
    assert len(list(room.folder.iterdir())) == 2
    expected = Engine(device="cpu").forward(small_encoder(), images.pixels, 99, batch_size=16)
    torch.testing.assert_close(made[0], expected)


def test_centres_of_a_sample_are_those_of_the_groups(monkeypatch):
    monkeypatch.setattr(features, "_SAMPLE", 100)
    random = torch.Generator().manual_seed(0)
    corners = 3 * torch.eye(4)
    group = torch.randint(4, (5000,), generator=random)
    rows = corners[group] + 0.2 * torch.randn(5000, 4, generator=random)
    found = clusters_of(rows, 4, seed=0)
    assert found.assignment.shape == found.distances.shape == (5000,)
    unit = rows / rows.norm(dim=1, keepdim=True)
    for number in (0, 17, 4096, 4999):
        apart = [float((unit[number] - centre).norm()) for centre in found.centres]
        assert int(found.assignment[number]) == apart.index(min(apart))
        assert float(found.distances[number]) == pytest.approx(min(apart), abs=1e-4)
    assert len({(int(a), int(b)) for a, b in zip(group, found.assignment, strict=True)}) == 4
    assert torch.equal(found.centres, clusters_of(rows, 4, seed=0).centres)


def test_a_folder_without_space_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"go into a file, and .*file does not take them .*--workdir"):
        Room(0, tmp_path / "file").empty((4, 4), torch.uint8)
    with pytest.raises(DataError, match="does not take them"):
        Room(0, tmp_path).empty((1 << 50,), torch.uint8)
