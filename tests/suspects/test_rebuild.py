"""Tensors into networks, strictly; what is dropped is listed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from sanitize.errors import ArchitectureError
from sanitize.suspects import Classifier, Encoder, Tensors, read_tensors, rebuild
from sanitize.suspects.architectures import build
from sanitize.types import Normalization

SUSPECTS = Path(os.environ.get("SANITIZE_SUSPECTS", Path(__file__).parents[2].parent / "shared" / "suspects"))
NORMALIZATION = Normalization.named("cifar10")


def randomized(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, value in network.state_dict().items():
            if key.endswith("running_var"):
                value.uniform_(0.5, 1.5, generator=generator)
            elif key.endswith("running_mean"):
                value.normal_(generator=generator)
    return network.eval()


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return randomized(torchvision.models.resnet18(num_classes=7))


def put(state, kind="encoder", architecture="resnet18", size=64):
    return rebuild(
        Tensors(dict(state), "state-dict"),
        kind=kind,
        architecture=architecture,
        normalization=NORMALIZATION,
        image_size=size,
    )


def reference(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (NORMALIZATION.mean, NORMALIZATION.std))
    with torch.inference_mode():
        return network((images - mean) / std)


def features(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    head, network.fc = network.fc, nn.Identity()
    try:
        return reference(network, images)
    finally:
        network.fc = head


def test_encoder_and_classifier_compute_what_the_original_does(resnet: nn.Module):
    images = torch.rand(3, 3, 64, 64)
    encoder = put(resnet.state_dict())
    assert isinstance(encoder.network, Encoder)
    assert encoder.dropped == ["fc.bias", "fc.weight"]
    assert [finding.rule for finding in encoder.findings] == ["weights-dropped"]
    with torch.inference_mode():
        assert torch.allclose(encoder.network(images), features(resnet, images), atol=1e-5)
    assert encoder.old_head is not None
    assert torch.equal(encoder.old_head[0], resnet.fc.weight)
    classifier = put(resnet.state_dict(), "classifier")
    assert isinstance(classifier.network, Classifier)
    assert (classifier.dropped, classifier.network.spec.output_size) == ([], 7)
    with torch.inference_mode():
        assert torch.allclose(classifier.network(images), reference(resnet, images), atol=1e-5)


def prefixed(state, prefix: str):
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    "prefix", ["module.", "backbone.", "module.encoder_q.", "encoder.f.", "_orig_mod.module.", "anything.", "visual."]
)
def test_prefixes(resnet: nn.Module, prefix: str):
    rebuilt = put(prefixed(resnet.state_dict(), prefix))
    assert rebuilt.dropped == [f"{prefix}fc.bias", f"{prefix}fc.weight"]
    assert rebuilt.old_head is not None


def test_moco_takes_the_query_encoder(resnet: nn.Module):
    query = resnet.state_dict()
    key = {name: value + 1 for name, value in query.items()}
    state = prefixed(key, "module.encoder_k.") | prefixed(query, "module.encoder_q.")
    rebuilt = put(state | {"module.queue": torch.rand(8, 4), "module.queue_ptr": torch.zeros(1, dtype=torch.long)})
    assert torch.equal(rebuilt.network.backbone.conv1.weight, query["conv1.weight"])
    assert len(rebuilt.dropped) == len(key) + 2 + 2
    assert rebuilt.old_head is None  # its fc is a projection


def test_numbered_children_and_projector(resnet: nn.Module):
    """The layout of much SimCLR code: ``f`` is an nn.Sequential of the ResNet's children, ``g`` the projector."""
    model = nn.Module()
    model.f = nn.Sequential(*list(resnet.children())[:-1])
    model.g = nn.Sequential(nn.Linear(512, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 16))
    rebuilt = put(model.state_dict())
    assert all(key.startswith("g.") for key in rebuilt.dropped)
    assert len(rebuilt.dropped) == 8
    assert "weights-renumbered" in {finding.rule for finding in rebuilt.findings}
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(rebuilt.network(images), features(resnet, images), atol=1e-5)


def without(state, *parts: str):
    return {key: value for key, value in state.items() if not key.startswith(parts)}


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        (lambda s: s, {"architecture": "resnet34"}, "80 missing: layer1.2.conv1.weight.*and 76 more"),
        (
            lambda s: s,
            {"architecture": "resnet18-cifar", "size": 32},
            r"conv1.weight has \(64, 3, 7, 7\).*--arch resnet18",
        ),
        (lambda s: s, {"architecture": "small-cnn", "size": 32}, "None of the 122 keys fits"),
        (lambda s: s | {"evil.weight": torch.ones(2)}, {}, "1 unexpected: evil.weight"),
        (lambda s: without(s, "layer4.1.bn2"), {}, "missing: layer4.1.bn2.weight"),
        (lambda s: without(s, "fc"), {"kind": "classifier"}, "no head weights.*sanitize encoder"),
        (lambda s: prefixed(s, "a.") | prefixed(s, "b."), {}, "second network"),
        (lambda s: s | {"conv1.weight": torch.zeros(64, 3, 7, 7, dtype=torch.int8)}, {}, "has torch.int8"),
        (lambda s: s | {"conv1.weight": torch.full((64, 3, 7, 7), 1e38)}, {}, "NaN or infinite values"),
    ],
)
def test_what_does_not_fit_is_named(resnet: nn.Module, change, options: dict, reason: str):
    with pytest.raises(ArchitectureError, match=reason):
        put(change(resnet.state_dict()), **options)


def test_batch_counters_of_old_files_may_be_absent(resnet: nn.Module):
    state = {key: value for key, value in resnet.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert put(state).network.spec.output_size == 512


def test_cifar_resnet_from_a_wrapped_file(tmp_path: Path):
    network = randomized(build("resnet18-cifar", kind="classifier", image_size=32, classes=10).backbone)
    torch.save({"net": nn.DataParallel(network).state_dict(), "acc": 93.1, "epoch": 199}, tmp_path / "ckpt.pth")
    tensors = read_tensors(tmp_path / "ckpt.pth")
    options = {"architecture": "resnet18-cifar", "normalization": NORMALIZATION, "image_size": 32}
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        classifier = rebuild(tensors, kind="classifier", **options).network
        assert torch.allclose(classifier(images), reference(network, images), atol=1e-5)
        encoder = rebuild(tensors, kind="encoder", **options)
        weight, bias = encoder.old_head
        assert torch.allclose(encoder.network(images) @ weight.T + bias, classifier(images), atol=1e-4)


def test_inception_style_auxiliary_heads_are_dropped_and_listed():
    network = torchvision.models.googlenet(weights=None, num_classes=5, aux_logits=True, init_weights=False)
    rebuilt = put(network.state_dict(), "classifier", "googlenet")
    assert {key.partition(".")[0] for key in rebuilt.dropped} == {"aux1", "aux2"}


def test_third_party_checkpoint():
    folder = SUSPECTS / "badnets-cifar10"
    if not folder.exists():
        pytest.skip(f"needs {folder} (set SANITIZE_SUSPECTS)")
    tensors = read_tensors(folder / "checkpoint.pth")
    options = {
        "architecture": f"{folder / 'small_vgg.py'}:small_vgg",
        "normalization": Normalization.named("none"),
        "image_size": 32,
    }
    encoder = rebuild(tensors, kind="encoder", **options)
    assert encoder.dropped == ["classifier.bias", "classifier.weight"]
    assert encoder.old_head[0].shape == (10, encoder.network.spec.output_size) == (10, 2048)
    assert rebuild(tensors, kind="classifier", **options).network.spec.output_size == 10
    with pytest.raises(ArchitectureError, match="do not fit small-cnn"):
        rebuild(tensors, kind="encoder", **options | {"architecture": "small-cnn"})
