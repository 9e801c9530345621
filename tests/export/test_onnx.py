from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import onnx
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from sanitize.errors import ExportError
from sanitize.export.onnx import export_onnx
from tests.export.networks import local, network

ROOT = Path(__file__).parents[2]
METADATA = {"sanitize.source_uri": "models:/suspect/1", "sanitize.source_sha256": "ab" * 32, "sanitize.run_id": "0f1e"}

# Loads the file as a serving stack would: nothing of ours, no torch.
STRANGER = """
import sys
import numpy, onnxruntime
path, images, expected = sys.argv[1:]
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
images, expected = numpy.load(images), numpy.load(expected)
(entry,), (result,) = session.get_inputs(), session.get_outputs()
assert (entry.name, entry.type) == ("images", "tensor(float)"), entry
for count in (1, 2, 5, 8):
    (output,) = session.run(None, {"images": images[:count]})
    assert output.shape == (count, expected.shape[1])
    assert abs(output - expected[:count]).max() <= 1e-4, abs(output - expected[:count]).max()
metadata = session.get_modelmeta().custom_metadata_map
assert metadata["sanitize.source_uri"] == "models:/suspect/1", metadata
assert not {"torch", "sanitize"} & set(sys.modules)
print(result.name, entry.shape)
"""


@pytest.mark.parametrize(
    ("name", "kind", "size"),
    [("small-cnn", "encoder", 32), ("small-cnn", "classifier", 32), ("resnet18-cifar", "encoder", 32)],
)
def test_a_stranger_can_run_it(tmp_path: Path, name: str, kind: Any, size: int):
    exported = network(name, kind=kind, image_size=size)
    path = tmp_path / "model.onnx"
    assert export_onnx(exported, path, metadata=METADATA) <= 1e-4
    images = torch.rand(8, 3, size, size)
    with torch.inference_mode():
        expected = exported(images)
    numpy.save(tmp_path / "images.npy", images.numpy())
    numpy.save(tmp_path / "expected.npy", expected.numpy())
    arguments = [str(tmp_path / file) for file in ("model.onnx", "images.npy", "expected.npy")]
    done = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, *arguments], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["features" if kind == "encoder" else "logits", "['batch',", "3,", "32,", "32]"]
    assert sorted(file.name for file in tmp_path.glob("model*")) == ["model.onnx"]


@pytest.mark.slow
def test_depthwise_convolutions_and_squeeze_excitation(tmp_path: Path):
    exported = network("mobilenet_v3_small", image_size=64, normalization="imagenet")
    assert export_onnx(exported, tmp_path / "model.onnx", metadata={}) <= 1e-4


def test_attention_and_a_class_token(tmp_path: Path):
    torch.manual_seed(0)
    transformer = VisionTransformer(
        image_size=16, patch_size=4, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, dropout=0.1, num_classes=5
    )
    nn.init.normal_(transformer.heads.head.weight)
    assert export_onnx(local(transformer, 5), tmp_path / "model.onnx", metadata={}) <= 1e-4


def test_metadata_and_no_trace_of_this_machine(tmp_path: Path):
    path = tmp_path / "model.onnx"
    export_onnx(network(), path, metadata=METADATA)
    model = onnx.load(path)
    properties = {item.key: item.value for item in model.metadata_props}
    assert METADATA.items() <= properties.items()
    assert properties["sanitize.image_size"] == "32"
    assert properties["sanitize.normalization"] == "cifar10"
    assert properties["sanitize.normalization_mean"] == "0.4914, 0.4822, 0.4465"
    assert properties["sanitize.resize"] == "shorter side, then centre crop; bilinear with antialias"
    assert str(Path.cwd()).encode() not in path.read_bytes()
    assert b"site-packages" not in path.read_bytes()


def test_the_same_weights_give_the_same_bytes(tmp_path: Path):
    script = (
        "import sys; from pathlib import Path; from sanitize.export.onnx import export_onnx; "
        "from tests.export.networks import network; export_onnx(network(), Path(sys.argv[1]), metadata={'a': 'b'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a.onnx")], capture_output=True, text=True, check=True, cwd=ROOT
    )
    export_onnx(network(), tmp_path / "b.onnx", metadata={"a": "b"})
    assert (done.stdout, done.stderr) == ("", "")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_mode_and_weights_stay_and_dropout_is_off(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    backbone = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    exported = local(backbone, 8).train()
    before = {name: tensor.clone() for name, tensor in exported.state_dict().items()}
    capfd.readouterr()
    export_onnx(exported, tmp_path / "model.onnx", metadata={})
    assert capfd.readouterr() == ("", "")
    assert all(module.training for module in exported.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in exported.state_dict().items())


class Branching(nn.Module):
    """Decides by its input's values, which no graph can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, images: Tensor) -> Tensor:
        means = images.mean((2, 3))
        return self.layer(means) if means.sum() > 0 else -self.layer(means)


class FixedBatch(nn.Module):
    """Works for two images only."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.reshape(2, 3, -1).mean(2))


@pytest.mark.parametrize(
    ("backbone", "message"),
    [(Branching, r"own\.py:make at 16 px could not be exported"), (FixedBatch, "fixes its batch size")],
)
def test_what_cannot_be_exported_says_so(
    tmp_path: Path, backbone: type[nn.Module], message: str, capfd: pytest.CaptureFixture[str]
):
    exported = local(backbone(), 4)
    capfd.readouterr()
    with pytest.raises(ExportError, match=message):
        export_onnx(exported, tmp_path / "model.onnx", metadata={})
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_a_difference_is_found_and_nothing_is_left(tmp_path: Path):
    """NaN features on the inputs tried are the difference that can be had without a defective runtime."""

    class Overflowing(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            means = images.mean((2, 3))
            return (means - means[:, :1]).log()  # finite only where channels differ upwards

    exported = local(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)), 3)
    exported.backbone = Overflowing()
    with pytest.raises(ExportError, match="differs from PyTorch by nan"):
        export_onnx(exported, tmp_path / "model.onnx", metadata={})
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ExportError, match="could not write"):
        export_onnx(
            local(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), 3), tmp_path / "file" / "a.onnx", metadata={}
        )
