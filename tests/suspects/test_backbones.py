"""Every backbone: features before the head, both kinds, and the way through the package and ONNX."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import EfficientNet, VisionTransformer
from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig

from sanitize.errors import ArchitectureError, ConfigError
from sanitize.export.onnx import export_onnx
from sanitize.export.package import read_package, write_package
from sanitize.suspects import Network, build, untrained, wrap
from sanitize.suspects.architectures import BUILT_IN
from sanitize.suspects.cifar import CifarResNet
from sanitize.suspects.senet import SEBlock
from sanitize.suspects.vgg import CifarVGG
from sanitize.suspects.vit import BASE, SMALL, Shape, vision_transformer
from sanitize.types import ModelKind, ModelSpec, Normalization

# name, image size, features, head, parameters without the head where torchvision's page gives them with it
BACKBONES = [
    ("resnet18-cifar", 32, 512, "fc", 11_168_832),
    ("resnet34-cifar", 32, 512, "fc", 21_276_992),
    ("resnet18-narrow", 32, 128, "fc", None),
    ("senet18-cifar", 32, 512, "fc", None),
    ("senet34-cifar", 32, 512, "fc", None),
    ("vgg11-cifar", 32, 512, "classifier", None),
    ("vgg16-cifar", 32, 512, "classifier", None),
    ("vit-small", 32, 384, "heads.head", None),
    ("vit-small", 224, 384, "heads.head", None),
    ("vit-base", 32, 768, "heads.head", None),
    ("vit-base", 224, 768, "heads.head", 85_798_656),
    ("small-cnn", 32, 128, "fc", None),
    ("resnet18-cifar-attention", 32, 512, "fc", None),
    ("resnet34-cifar-attention", 32, 512, "fc", None),
    ("resnet18-narrow-attention", 32, 128, "fc", None),
    ("small-cnn-attention", 32, 128, "fc", None),
    ("resnet18", 64, 512, "fc", 11_176_512),
    ("resnet34", 64, 512, "fc", 21_284_672),
    ("efficientnet_v2_s", 64, 1280, "classifier.1", 20_177_488),
]


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("name", "size", "features", "head", "count"), BACKBONES, ids=lambda value: str(value))
def test_features_are_tapped_before_the_head(name, size, features, head, count):
    plan = build(name, kind="encoder", image_size=size)
    assert (plan.output_size, plan.head) == (features, head)
    assert count is None or parameters(plan.backbone) == count


def test_every_built_in_name_is_among_those():
    assert set(BUILT_IN) <= {row[0] for row in BACKBONES}


@pytest.mark.parametrize(
    ("name", "size"), [("resnet18-narrow", 32), ("senet18-cifar", 32), ("vgg11-cifar", 48), ("vit-small", 32)]
)
def test_a_classifier_is_its_encoder_and_a_linear_layer(name, size):
    plan = build(name, kind="classifier", image_size=size, classes=7)
    encoder = build(name, kind="encoder", image_size=size).backbone.eval()
    classifier = plan.backbone.eval()
    head = classifier.get_submodule(plan.head or "")
    nn.init.normal_(head.weight)
    state = classifier.state_dict()
    encoder.load_state_dict({key: state[key] for key in state if not key.startswith(f"{plan.head}.")})
    images = torch.rand(3, 3, size, size)
    with torch.inference_mode():
        features, logits = encoder(images), classifier(images)
        expected = features @ head.weight.T + head.bias
    assert logits.shape == (3, 7)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert features.std(dim=0).max() > 1e-4


def test_the_seed_decides_the_weights():
    first, again, other = (untrained("vgg11-cifar", kind="encoder", image_size=32, seed=seed) for seed in (1, 1, 2))
    key = "backbone.features.0.weight"
    assert torch.equal(first.state_dict()[key], again.state_dict()[key])
    assert not torch.equal(first.state_dict()[key], other.state_dict()[key])


# ----------------------------------------------------------------------------------------- what they are made of


def test_a_squeeze_excitation_block_equals_plain_arithmetic():
    torch.manual_seed(0)
    block = SEBlock(32, 32).eval()
    images = torch.randn(2, 32, 5, 5)
    with torch.inference_mode():
        inner = block.bn2(block.conv2(block.bn1(block.conv1(images)).clamp(min=0)))
        squeezed = inner.mean(dim=(2, 3))
        hidden = (squeezed @ block.se.fc1.weight[:, :, 0, 0].T + block.se.fc1.bias).clamp(min=0)
        gates = 1 / (1 + torch.exp(-(hidden @ block.se.fc2.weight[:, :, 0, 0].T + block.se.fc2.bias)))
        expected = (inner * gates[:, :, None, None] + images).clamp(min=0)
        torch.testing.assert_close(block(images), expected, atol=1e-5, rtol=1e-5)
    assert block.se.fc1.weight.shape == (2, 32, 1, 1)


def test_a_senet_is_a_resnet_with_excitations():
    plain, weighing = CifarResNet(34, 10), CifarResNet(34, 10, block=SEBlock)
    more = set(weighing.state_dict()) - set(plain.state_dict())
    assert set(plain.state_dict()) <= set(weighing.state_dict())
    assert len(more) == 4 * 16 and all(".se.fc" in key for key in more)


def test_vgg_has_torchvisions_convolutions_and_five_poolings():
    for depth in (11, 16):
        ours = CifarVGG(depth, 10)
        with torch.device("meta"):
            theirs = getattr(torchvision.models, f"vgg{depth}_bn")(init_weights=False, num_classes=2)
        shapes = {key: value.shape for key, value in theirs.features.state_dict().items()}
        assert {key: value.shape for key, value in ours.features.state_dict().items()} == shapes
        assert sum(isinstance(layer, nn.MaxPool2d) for layer in ours.features) == 5


def test_a_narrow_resnet_has_a_quarter_of_each_width():
    wide, narrow = CifarResNet(18, 10), CifarResNet(18, 10, width=16)
    assert list(wide.state_dict()) == list(narrow.state_dict())
    for name, layer in narrow.named_modules():
        if isinstance(layer, nn.Conv2d):
            assert 4 * layer.out_channels == wide.get_submodule(name).out_channels


def test_vision_transformers_have_the_papers_shapes():
    assert (Shape(384, 12, 6), Shape(768, 12, 12)) == (SMALL, BASE)
    for size, patch, tokens in ((32, 4, 65), (64, 8, 65), (96, 8, 145), (128, 16, 65), (224, 16, 197)):
        with torch.device("meta"):
            made = vision_transformer(Shape(32, 1, 2), 10, size)
        assert (made.patch_size, made.seq_length) == (patch, tokens)


def test_a_transformers_feature_is_its_class_token_after_the_norm():
    torch.manual_seed(0)
    made = vision_transformer(Shape(32, 2, 2), 10, 32).eval()
    seen = []
    made.encoder.ln.register_forward_hook(lambda layer, inputs, output: seen.append(output))
    made.heads = nn.Identity()
    features = made(torch.rand(2, 3, 32, 32))
    assert torch.equal(features, seen[0][:, 0])


# ------------------------------------------------------------------------------------------------- there and back


def shaken(network: Network) -> Network:
    """With weights and statistics that leave no layer trivial."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.uniform_(-0.1, 0.1, generator=generator)
                layer.running_var.uniform_(0.5, 1.5, generator=generator)
    return network


def made(name: str, kind: ModelKind = "encoder", size: int = 32) -> Network:
    classes = 7 if kind == "classifier" else None
    return shaken(untrained(name, kind=kind, image_size=size, normalization="cifar10", classes=classes))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("resnet18-narrow", "encoder"),
        ("resnet18-narrow", "classifier"),
        ("senet18-cifar", "encoder"),
        ("vgg11-cifar", "classifier"),
        ("vit-small", "encoder"),
        ("vit-small", "classifier"),
    ],
)
def test_a_package_gives_back_the_same_network(tmp_path, name, kind):
    network = made(name, kind)
    again = read_package(write_package(network, tmp_path))
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(network(images), again(images))
    assert again.spec == network.spec


def small(architecture: str) -> Network:
    """A small one of each family."""
    torch.manual_seed(0)
    backbones: dict[str, nn.Module] = {
        "resnet": CifarResNet(18, 7, width=8),
        "senet": CifarResNet(18, 7, block=SEBlock, width=16),
        "vit": vision_transformer(Shape(32, 2, 2), 7, 32),
        "efficientnet_v2": EfficientNet(
            [
                FusedMBConvConfig(1, 3, 1, 8, 8, 1),
                FusedMBConvConfig(4, 3, 2, 8, 16, 1),
                MBConvConfig(4, 3, 2, 16, 24, 2),
            ],
            dropout=0.2,
            num_classes=7,
            last_channel=32,
        ),
    }
    backbone = backbones[architecture]
    if isinstance(backbone, VisionTransformer):
        nn.init.normal_(backbone.heads.head.weight)
    spec = ModelSpec(
        kind="classifier",
        architecture=f"own.py:{architecture}",
        normalization=Normalization.named("cifar10"),
        image_size=32,
        output_size=7,
    )
    return shaken(wrap(backbone.eval(), spec))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["resnet", "senet", "vit", "efficientnet_v2"])
def test_onnx_equals_pytorch(tmp_path: Path, family):
    assert export_onnx(small(family), tmp_path / "model.onnx", metadata={}) <= 1e-4


@pytest.mark.slow
def test_onnx_of_a_vgg_equals_pytorch(tmp_path: Path):
    assert export_onnx(made("vgg11-cifar"), tmp_path / "model.onnx", metadata={}) <= 1e-4


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "size", "error", "reason"),
    [
        ("vgg11-cifar", 16, ArchitectureError, "cannot take RGB images of 16x16 px"),
        ("vit-small", 33, ConfigError, "patches of 4 px, and 33 px is no multiple.*--image-size 32"),
        ("vit-base", 100, ConfigError, "patches of 8 px"),
        ("efficientnet_v2_s-cifar", 32, ConfigError, "no efficientnet_v2_s-cifar.*resnet18-cifar, resnet34-cifar"),
        ("vit-smal", 32, ConfigError, "Did you mean vit-small"),
    ],
)
def test_what_cannot_be_built_is_said(name, size, error, reason):
    with pytest.raises(error, match=reason):
        build(name, kind="encoder", image_size=size)


def test_a_package_for_another_size_of_transformer_is_refused(tmp_path):
    network = made("vit-small", size=32)
    network.spec = replace(network.spec, image_size=48)
    with pytest.raises(ArchitectureError, match="do not belong to vit-small"):
        read_package(write_package(network, tmp_path))
