"""Formats that are read, and files that are refused with a reason."""

from __future__ import annotations

import argparse
import os
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from sanitize.errors import ArtifactError, UnsafeArtifactError
from sanitize.suspects import isolation
from sanitize.suspects.quarantine import digest
from sanitize.suspects.readers import read_tensors

SUSPECTS = Path(os.environ.get("SANITIZE_SUSPECTS", Path(__file__).parents[2].parent / "shared" / "suspects"))


def told(tensors) -> list:
    """What is said of the file, beside that the machine has no bubblewrap: said if, and only if, that is so."""
    incomplete = [finding for finding in tensors.findings if finding.rule == "isolation-incomplete"]
    assert len(incomplete) == (isolation.bubblewrap() is None)
    return [finding for finding in tensors.findings if finding not in incomplete]


class Net(nn.Module):
    """A defender's or attacker's own class, in a module that is not known."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)
        self.register_buffer("scratch", torch.zeros(3), persistent=False)

    def forward(self, images):
        return self.fc(torch.relu(self.norm(self.conv(images))).mean((2, 3)))


def assert_same(state, expected):
    assert set(state) == set(expected)
    for key, tensor in expected.items():
        wanted = tensor.detach().float() if tensor.is_floating_point() else tensor
        assert torch.equal(state[key], wanted), key


def save(value, folder: Path, **options) -> Path:
    torch.save(value, folder / "model.pth", **options)
    return folder / "model.pth"


@pytest.mark.parametrize(
    "wrap", [lambda s: s, *(lambda s, k=k: {"epoch": 3, k: s} for k in ("state_dict", "net", "weird"))]
)
def test_state_dict_under_any_key(tmp_path: Path, wrap):
    state = Net().state_dict()
    tensors = read_tensors(save(wrap(state), tmp_path))
    assert_same(tensors.state, state)
    assert tensors.format == "state-dict"
    assert told(tensors) == []
    assert tensors.sha256 == digest(tmp_path / "model.pth")


def test_checkpoint_leaves_optimizer_and_scalars_out(tmp_path: Path):
    network = Net()
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.rand(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    value = {
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=0.1),
        "best": torch.tensor(0.9),
    }
    tensors = read_tensors(save(value, tmp_path))
    assert_same(tensors.state, network.state_dict())
    (finding,) = told(tensors)
    assert finding.rule == "artifact-entries-skipped"
    assert finding.evidence["entries"] == ["optimizer", "best"] or "best" in finding.message


def test_views_and_dtypes(tmp_path: Path):
    base = torch.arange(24.0)
    state = {
        "strided": base[2:20:3],
        "transposed": base.view(4, 6).t(),
        "channels_last": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "half": torch.rand(3).half(),
        "bfloat": torch.rand(3).bfloat16(),
        "double": torch.rand(3).double(),
        "long": torch.tensor(7),
        "flag": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "parameter": nn.Parameter(torch.rand(2)),
    }
    for protocol in (2, 4, 5):
        tensors = read_tensors(save(state, tmp_path, pickle_protocol=protocol))
        assert_same(tensors.state, state)
        assert all(tensor.is_contiguous() for tensor in tensors.state.values())


def test_agrees_with_torch_load(tmp_path: Path):
    network = torchvision.models.mobilenet_v3_small(num_classes=3)
    file = save({"state_dict": nn.DataParallel(network).state_dict(), "epoch": 1}, tmp_path)
    assert_same(read_tensors(file).state, torch.load(file, weights_only=True)["state_dict"])


def test_whole_modules(tmp_path: Path):
    network = torchvision.models.resnet18(num_classes=3)
    tensors = read_tensors(save(network, tmp_path))
    assert (tensors.format, told(tensors)) == ("pickled-module", [])
    assert_same(tensors.state, network.state_dict())

    network = Net()
    file = save({"epoch": 1, "model": network}, tmp_path)
    with pytest.raises(UnsafeArtifactError, match=r"test_readers\.Net.*allow-stubbed"):
        read_tensors(file)
    tensors = read_tensors(file, allow_stubbed=True)
    assert [finding.rule for finding in told(tensors)] == ["artifact-unknown-global"]
    assert_same(tensors.state, network.state_dict())  # without the buffer that is not persistent


@pytest.fixture(scope="module")
def mlflow_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, nn.Module]]:
    """What a stock MLflow script writes: torchvision's and its own class, as pickle and as pt2."""
    import mlflow

    folder = tmp_path_factory.mktemp("mlflow")
    script = types.ModuleType("__main__")
    source = Path(__file__).read_text()
    body = source[source.index("class Net(") : source.index("def assert_same")]
    exec("import torch\nfrom torch import nn\n" + body, script.__dict__)
    models = {"resnet": torchvision.models.resnet18(num_classes=5).eval(), "own": script.Net().eval()}
    example = torch.rand(2, 3, 32, 32).numpy()
    real, sys.modules["__main__"] = sys.modules["__main__"], script  # cloudpickle pickles classes of __main__ by value
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, network in models.items():
                for form in ("pickle", "pt2"):
                    mlflow.pytorch.save_model(
                        network,
                        folder / f"{name}-{form}",
                        serialization_format=form,
                        input_example=example,
                        pip_requirements=["torch"],
                    )
    finally:
        sys.modules["__main__"] = real
    return folder, models


@pytest.mark.parametrize("name", ["resnet-pickle", "resnet-pt2", "own-pt2"])
def test_mlflow_folders_are_silent(mlflow_folders, name: str):
    folder, models = mlflow_folders
    tensors = read_tensors(folder / name)
    assert told(tensors) == []
    assert tensors.format == ("pt2" if name.endswith("pt2") else "pickled-module")
    assert_same(tensors.state, models[name.partition("-")[0]].state_dict())


def test_class_pickled_by_value(mlflow_folders):
    folder, models = mlflow_folders
    file = folder / "own-pickle" / "data" / "model.pth"
    with pytest.raises(Exception, match="Unsupported operand 48"):  # why torch's own unpickler is not used
        torch.serialization.get_unsafe_globals_in_checkpoint(file)
    with pytest.raises(UnsafeArtifactError, match=r"cloudpickle\.cloudpickle\._make"):
        read_tensors(folder / "own-pickle")
    tensors = read_tensors(folder / "own-pickle", allow_stubbed=True)
    assert "artifact-code-by-value" in {finding.rule for finding in tensors.findings}
    assert_same(tensors.state, models["own"].state_dict())


def test_safetensors_alone_and_in_a_folder(tmp_path: Path):
    state = {key: value.half() if value.is_floating_point() else value for key, value in Net().state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    assert_same(read_tensors(tmp_path / "model.safetensors").state, state)
    (tmp_path / "MLmodel").write_text("flavors: {pytorch: {model_data: data}}\n")
    (tmp_path / "model.onnx").write_bytes(b"\x08\x0a")
    tensors = read_tensors(tmp_path)
    assert tensors.format == "safetensors"
    assert [finding.rule for finding in told(tensors)] == ["artifact-not-examined"]


def test_third_party_checkpoint():
    file = SUSPECTS / "badnets-cifar10" / "checkpoint.pth"
    if not file.exists():
        pytest.skip(f"needs {file} (set SANITIZE_SUSPECTS)")
    tensors = read_tensors(file)
    assert_same(tensors.state, torch.load(file, weights_only=True, map_location="cpu")["net"])
    assert len(tensors.state) == 44
    assert told(tensors) == []


def legacy(folder: Path) -> Path:
    return save(Net().state_dict(), folder, _use_new_zipfile_serialization=False)


def script(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(2, 2)).save(folder / "model.pt")
    return folder / "model.pt"


def written(name: str, content: bytes):
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def truncated(folder: Path) -> Path:
    file = save(Net().state_dict(), folder)
    file.write_bytes(file.read_bytes()[:-1000])
    return file


def flipped(folder: Path) -> Path:
    file = save({"w": torch.zeros(1000)}, folder)
    content = bytearray(file.read_bytes())
    content[content.index(b"\x00" * 2000) + 500] ^= 0xFF
    file.write_bytes(content)
    return file


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (legacy, "legacy format"),
        (script, "TorchScript"),
        (written("model.onnx", b"\x08\x0aonnx"), "ONNX"),
        (written("model.h5", b"\x89HDF\r\n\x1a\n" + b"\0" * 64), "HDF5"),
        (written("model.npy", b"\x93NUMPY\x01\x00"), "numpy"),
        (written("model.pth", b""), "empty"),
        (written("model.pth", bytes(range(1, 256)) * 40), "no known format"),
        (written("model.pth", b"PK\x03\x04" + bytes(range(256))), "corrupt"),
        (written("model.safetensors", (1000).to_bytes(8, "little") + b'{"a": 1'), "safetensors"),
        (written("model.pkl", b"\x80\x02}q\x00."), "bare pickle"),
        (truncated, "corrupt"),
        (flipped, "corrupt"),
        (lambda folder: save({"w": torch.tensor([1.0, float("nan")])}, folder), "NaN or infinite weights in w"),
        (lambda folder: save({"w": torch.tensor([float("inf")]).double()}, folder), "NaN or infinite weights in w"),
        (lambda folder: save({"w": torch.rand(2).to(torch.complex64)}, folder), "complex64|ComplexFloat"),
        (lambda folder: save({"w": torch.eye(3).to_sparse()}, folder), "sparse"),
        (lambda folder: save({"epoch": 3}, folder), "no weights.*'epoch'"),
        (lambda folder: save([1, 2], folder), "no weights"),
        (lambda folder: folder / "absent.pth", "does not exist"),
    ],
)
def test_refused_with_the_reason(tmp_path: Path, make, reason: str):
    with pytest.raises(ArtifactError, match=reason):
        read_tensors(make(tmp_path))


def test_declared_shapes_beyond_the_data_are_refused(tmp_path: Path):
    state = {"w": torch.zeros(1).expand(1 << 20, 1 << 20)}
    with pytest.raises(ArtifactError, match="declare more than"):
        read_tensors(save(state, tmp_path))


def test_missing_protection_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = save(Net().state_dict(), tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    isolation.bubblewrap.cache_clear()
    try:
        (finding,) = read_tensors(file).findings
    finally:
        isolation.bubblewrap.cache_clear()
    assert finding.rule == "isolation-incomplete"
    assert "bubblewrap" in finding.message
