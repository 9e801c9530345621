from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from sanitize.errors import ArchitectureError, ArtifactError, ConfigError, ExportError
from sanitize.export.package import read_package, write_package
from sanitize.suspects.networks import Classifier, Encoder, Network
from tests.export.networks import local, network

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "kind", "size"),
    [("small-cnn", "encoder", 32), ("resnet18-cifar", "classifier", 32), ("mobilenet_v3_small", "encoder", 64)],
)
def test_round_trip_is_exact(tmp_path: Path, name: str, kind: Any, size: int):
    written = network(name, kind=kind, image_size=size)
    read = read_package(write_package(written, tmp_path / "package"))
    assert type(read) is (Encoder if kind == "encoder" else Classifier)
    assert read.spec == written.spec
    assert not read.training
    images = torch.rand(3, 3, size, size)
    with torch.inference_mode():
        assert torch.equal(read(images), written(images))


def test_two_files_the_same_bytes_each_time(tmp_path: Path):
    first, second = write_package(network(), tmp_path / "a"), write_package(network(), tmp_path / "b")
    assert sorted(file.name for file in first.iterdir()) == ["model.safetensors", "sanitize.json"]
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes()


def test_the_json_says_what_rebuilds_the_network(tmp_path: Path):
    write_package(network(), tmp_path)
    values = json.loads((tmp_path / "sanitize.json").read_text())
    assert values.pop("sha256") == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert values == {
        "format_version": 1,
        "kind": "encoder",
        "architecture": "small-cnn",
        "normalization": {"name": "cifar10", "mean": [0.4914, 0.4822, 0.4465], "std": [0.247, 0.2435, 0.2616]},
        "image_size": 32,
        "output_size": 128,
        "resize": "shorter side, then centre crop; bilinear with antialias",
    }


def test_the_tensors_load_into_the_plain_network(tmp_path: Path):
    written = network()
    write_package(written, tmp_path)
    written.backbone.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"), strict=True)


def test_weights_shared_between_layers_are_written(tmp_path: Path):
    layer = nn.Linear(8, 8)
    tied = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 8), layer, layer)
    write_package(local(tied, 8), tmp_path)
    assert (tmp_path / "sanitize.json").exists()


def test_changed_weights_are_refused(tmp_path: Path):
    write_package(network(), tmp_path)
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match="not what was recorded"):
        read_package(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"format_version": 2},
        {"kind": "dataset"},
        {"image_size": "32"},
        {"image_size": 10**9},
        {"output_size": 0},
        {"sha256": "xyz"},
        {"normalization": {"name": "a", "mean": [0, 0, 0], "std": [0, 1, 1]}},
        {"normalization": {"name": "a", "mean": [0, 0, 0], "std": [1, 1, 1], "loader_module": "os"}},
        {"architecture": None},
    ],
)
def test_a_strange_json_is_refused(tmp_path: Path, change: dict[str, Any]):
    write_package(network(), tmp_path)
    _edit(tmp_path, **change)
    with pytest.raises(ArtifactError, match="not a package of format 1"):
        read_package(tmp_path)


def test_missing_and_oversized_files_are_refused(tmp_path: Path):
    with pytest.raises(ArtifactError, match=r"sanitize\.json"):
        read_package(tmp_path)
    write_package(network(), tmp_path)
    (tmp_path / "sanitize.json").write_text(" " * 100_000)
    with pytest.raises(ArtifactError, match="not the JSON file"):
        read_package(tmp_path)
    write_package(network(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        read_package(tmp_path)


def test_weights_of_another_architecture_are_refused(tmp_path: Path):
    write_package(network(), tmp_path)
    _edit(tmp_path, architecture="resnet18-cifar", output_size=512)
    with pytest.raises(ArchitectureError, match="do not belong to resnet18-cifar"):
        read_package(tmp_path)


@pytest.mark.parametrize("name", ["{folder}/evil.py:make", "evil.py", "evil:make", "../evil.py:make"])
def test_code_that_the_package_names_is_never_imported(tmp_path: Path, name: str):
    canary = tmp_path / "canary"
    (tmp_path / "evil.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    write_package(network(), tmp_path / "package")
    _edit(tmp_path / "package", architecture=name.format(folder=tmp_path))
    with pytest.raises(ConfigError, match="never imported"):
        read_package(tmp_path / "package")
    assert not canary.exists()


def test_own_code_is_used_when_the_caller_names_it(tmp_path: Path):
    source = tmp_path / "mine.py"
    source.write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    own = nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    written = local(own, 6)
    write_package(written, tmp_path / "package")
    read = read_package(tmp_path / "package", architecture=f"{source}:make")
    images = torch.rand(2, 3, 16, 16)
    with torch.inference_mode():
        assert torch.equal(read(images), written(images))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_written(tmp_path: Path, value: float):
    broken: Network = network()
    next(broken.parameters()).data[0] = value
    with pytest.raises(ExportError, match="NaN or infinite"):
        write_package(broken, tmp_path / "package")
    assert not (tmp_path / "package").exists()


def test_a_full_disk_leaves_nothing(tmp_path: Path):
    """A limit on the size of files fails the write in the middle, as a full disk does."""
    script = """
import resource, sys
from pathlib import Path
from sanitize.errors import ExportError
from sanitize.export.package import write_package
from tests.export.networks import network
written = network()
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    write_package(written, Path(sys.argv[1]))
except ExportError as error:
    print(error)
"""
    pytest.importorskip("resource", reason="limits on file sizes exist on POSIX only")
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "package")], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "could not write" in done.stdout
    assert list(tmp_path.iterdir()) == []


def _edit(folder: Path, **change: Any) -> None:
    path = folder / "sanitize.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
