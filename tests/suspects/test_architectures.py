"""Built-in, torchvision's and the defender's networks; heads are found and removed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from sanitize.errors import ArchitectureError, ConfigError
from sanitize.suspects.architectures import architecture_names, build
from sanitize.suspects.heads import find_head, is_head, is_momentum


@pytest.mark.parametrize(
    ("name", "size", "features", "head"),
    [
        ("resnet18-cifar", 32, 512, "fc"),
        ("small-cnn", 32, 128, "fc"),
        ("resnet18", 64, 512, "fc"),
        ("mobilenet_v3_small", 64, 1024, "classifier.3"),
        ("squeezenet1_1", 64, 512, "classifier.1"),
        ("googlenet", 64, 1024, "fc"),
        ("shufflenet_v2_x0_5", 64, 1024, "fc"),
        ("efficientnet_b0", 64, 1280, "classifier.1"),
        ("swin_t", 64, 768, "head"),
        ("convnext_tiny", 64, 768, "classifier.2"),
    ],
)
def test_encoders(name: str, size: int, features: int, head: str):
    plan = build(name, kind="encoder", image_size=size)
    assert (plan.output_size, plan.head) == (features, head)
    assert head in plan.head_prefixes
    assert not any(key.startswith(f"{head}.") for key in plan.backbone.state_dict())


@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
def test_every_torchvision_family_has_a_head_that_is_found():
    names = torchvision.models.list_models(module=torchvision.models)
    families = {torchvision.models.get_model_builder(name).__module__: name for name in reversed(names)}
    without = []
    for name in families.values():
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        device = "cpu" if name.startswith(("maxvit", "regnet")) else "meta"  # they compute widths with real tensors
        with torch.device(device):
            if find_head(torchvision.models.get_model(name, weights=None, **options)) is None:
                without.append(name)
    assert len(families) > 15
    assert without == []


def test_cifar_resnet_has_torchvisions_keys():
    for depth in (18, 34):
        plan = build(f"resnet{depth}-cifar", kind="classifier", image_size=32, classes=10)
        reference = getattr(torchvision.models, f"resnet{depth}")(num_classes=10).state_dict()
        ours = plan.backbone.state_dict()
        assert list(ours) == list(reference)
        assert {k for k in ours if ours[k].shape != reference[k].shape} == {"conv1.weight"}
        assert plan.output_size == 10
    with torch.inference_mode():
        assert plan.backbone.layer1(torch.rand(1, 64, 32, 32)).shape[-1] == 32  # no stride, no pooling in the stem


def test_vision_transformer_takes_the_image_size():
    plan = build("vit_b_32", kind="encoder", image_size=64)
    assert plan.output_size == 768
    with pytest.raises(ConfigError, match="65x65"):
        build("vit_b_32", kind="encoder", image_size=65)


@pytest.mark.parametrize(
    ("name", "options", "error", "reason"),
    [
        ("resnet18-cifr", {}, ConfigError, "Did you mean resnet18-cifar"),
        ("resnet19", {}, ConfigError, "Did you mean resnet1"),
        ("deeplabv3_resnet50", {}, ConfigError, "unknown architecture"),
        ("resnet18", {"kind": "classifier"}, ConfigError, "number of classes"),
        ("alexnet", {"image_size": 16}, ArchitectureError, "16x16 px"),
        ("small-cnn", {"image_size": 0}, ConfigError, "at least 1"),
    ],
)
def test_wrong_names_and_sizes(name: str, options: dict, error: type[Exception], reason: str):
    with pytest.raises(error, match=reason):
        build(name, **{"kind": "encoder", "image_size": 32} | options)


OWN = """
from torch import nn
import torch
from beside import WIDTH

def pooled():
    return nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def with_head():
    network = pooled()
    network.add_module("classifier", nn.Linear(WIDTH, 4))
    return network

def head_only():
    network = nn.Sequential(nn.Flatten())
    network.add_module("fc", nn.Linear(3 * 32 * 32, 4))
    return network

def maps():
    return nn.Conv2d(3, 5, 3)

def number():
    return 3

def fails():
    raise ValueError("broken")
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "beside.py").write_text("WIDTH = 6\n")
    return tmp_path / "own.py"


def test_defenders_own_function(own: Path):
    assert build(f"{own}:pooled", kind="encoder", image_size=32).output_size == 6
    plan = build(f"{own}:with_head", kind="encoder", image_size=32)
    assert (plan.output_size, plan.head) == (6, "classifier")
    assert build(f"{own}:with_head", kind="classifier", image_size=32).output_size == 4


@pytest.mark.parametrize(
    ("function", "error", "reason"),
    [
        ("absent", ConfigError, "no function 'absent'.*Known: .*pooled"),
        ("number", ConfigError, "gave int"),
        ("fails", ConfigError, "ValueError: broken"),
        ("head_only", ArchitectureError, "no feature layer"),
        ("maps", ArchitectureError, r"features \(N, D\) are needed.*pools and flattens"),
    ],
)
def test_errors_of_own_functions(own: Path, function: str, error: type[Exception], reason: str):
    with pytest.raises(error, match=reason):
        build(f"{own}:{function}", kind="encoder", image_size=32)


def test_errors_of_own_files(tmp_path: Path):
    with pytest.raises(ConfigError, match="there is no file"):
        build(f"{tmp_path}/absent.py:f", kind="encoder", image_size=32)
    with pytest.raises(ConfigError, match=r"must be file\.py:function"):
        build(f"{tmp_path}/absent.py", kind="encoder", image_size=32)
    (tmp_path / "broken.py").write_text("import nothing_of_this_name")
    with pytest.raises(ConfigError, match="ModuleNotFoundError"):
        build(f"{tmp_path}/broken.py:f", kind="encoder", image_size=32)


def test_names():
    assert {"resnet18-cifar", "vgg16-cifar", "senet34-cifar", "vit-base", "small-cnn"} < set(architecture_names())
    assert all(map(is_head, ["fc", "head", "heads", "classifier", "projector", "predictor", "online_projection", "g"]))
    assert all(map(is_momentum, ["encoder_k", "queue", "queue_ptr", "momentum_encoder", "teacher", "target_net"]))
    assert not any(is_head(name) or is_momentum(name) for name in ("layer1", "conv1", "features", "encoder_q", "norm"))
    assert find_head(nn.Sequential(nn.Linear(2, 2))) is None
