"""CLP beyond the table: constants against a slow reference, pairs of known networks, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sanitize.defenses.clp import CLP, pairs
from sanitize.errors import ConfigError
from sanitize.functional.lipschitz import channel_lipschitz, deviations
from sanitize.suspects import Encoder, untrained
from sanitize.training import Engine
from sanitize.types import ModelSpec, Normalization
from tests.encoders import defender_images, small_encoder


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in network.state_dict().values()])


def encoder(backbone: nn.Module) -> Encoder:
    spec = ModelSpec(
        kind="encoder",
        architecture="own",
        normalization=Normalization.named("none"),
        image_size=32,
        output_size=8,
    )
    return Encoder(backbone, spec).eval()


class PreActivation(nn.Module):
    """Batch norm before its convolution: `norm2` is fed by `conv1`, `norm3` by a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm1, self.norm2, self.norm3 = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, images):
        start = self.stem(images)
        inner = self.conv1(self.norm1(start).relu())
        return self.norm3(start + self.conv2(self.norm2(inner).relu())).relu().mean(dim=(2, 3))


class Squeeze(nn.Module):
    """The batch norm is called after the gate's convolution, and fed by `conv` through an identity."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate, self.drop, self.norm = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 1), nn.Identity(), None
        self.norm = nn.BatchNorm2d(8)

    def forward(self, images):
        features = self.drop(self.conv(images))
        gate = self.gate(images.mean(dim=(2, 3), keepdim=True)).sigmoid()
        return (self.norm(features) * gate).mean(dim=(2, 3))


class Branching(nn.Module):
    """Cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, images):
        if images.mean() > 0.5:
            images = 1 - images
        return self.norm(self.conv(images)).mean(dim=(2, 3))


@pytest.mark.parametrize("shape", [(7, 5, 3, 3), (6, 20, 3, 3), (9, 1, 5, 5), (8, 12, 1, 1), (4, 3, 1, 7)])
def test_constants_are_those_of_one_svd_a_channel(shape):
    generator = torch.Generator().manual_seed(0)
    kernels, scale = torch.randn(shape, generator=generator), torch.rand(shape[0], generator=generator)
    expected = [
        factor * torch.linalg.svdvals(kernel.double().reshape(shape[1], -1))[0]
        for kernel, factor in zip(kernels, scale.double(), strict=True)
    ]
    torch.testing.assert_close(channel_lipschitz(kernels, scale), torch.stack(expected), rtol=1e-6, atol=0)


def test_dead_kernels_have_constant_zero():
    assert channel_lipschitz(torch.zeros(2, 3, 3, 3), torch.ones(2)).tolist() == [0, 0]


def test_deviations_of_equal_or_single_values_are_zero():
    assert deviations(torch.ones(4)).tolist() == [0, 0, 0, 0]
    assert deviations(torch.ones(1)).tolist() == [0]


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        (PreActivation(), {"norm1": "stem", "norm2": "conv1"}),
        (Squeeze(), {"norm": "conv"}),
    ],
    ids=["pre-activation", "squeeze-and-excitation"],
)
def test_pairs_come_from_the_graph(backbone, expected):
    names = {module: name for name, module in backbone.named_modules()}
    assert {name: names[convolution] for name, convolution, _ in pairs(encoder(backbone))} == expected


def test_pairs_of_a_resnet_include_its_shortcuts():
    network = untrained("resnet18-cifar", kind="encoder", image_size=32)
    names = {module: name for name, module in network.backbone.named_modules()}
    found = {name: names[convolution] for name, convolution, _ in pairs(network)}
    norms = [name for name, module in network.backbone.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert found == {
        name: name.replace("downsample.1", "downsample.0") if "downsample" in name else name.replace("bn", "conv")
        for name in norms
    }


@pytest.mark.parametrize("architecture", ["efficientnet_b0", "mobilenet_v3_small"])
def test_pairs_of_torchvision_networks_with_gates_are_complete(architecture):
    network = untrained(architecture, kind="encoder", image_size=32)
    norms = {name for name, module in network.backbone.named_modules() if isinstance(module, nn.BatchNorm2d)}
    found = pairs(network)
    assert {name for name, _, _ in found} == norms
    assert all(convolution.out_channels == norm.num_features for _, convolution, norm in found)


def test_a_steep_channel_is_pruned_and_nothing_else():
    suspect = small_encoder()
    with torch.no_grad():
        suspect.backbone.features[4].weight[5] *= 30
    before = weights(suspect)
    result = CLP().purify(suspect, None, Engine(device="cpu"))
    norm = result.network.backbone.features[5]
    assert torch.equal(weights(suspect), before)
    assert result.findings[0].evidence["channels"]["features.5"] == [5]
    assert norm.weight[5] == norm.bias[5] == 0
    assert torch.equal(norm.weight[:5], suspect.backbone.features[5].weight[:5])
    images = torch.rand(4, 3, 32, 32)
    assert not result.network.backbone.features[:6](images)[:, 5].any()
    assert result.before["largest_channel_deviation"] > 3 >= result.after["largest_channel_deviation"]
    assert result.after["pruned_channels"] == sum(map(len, result.findings[0].evidence["channels"].values()))


def test_a_channel_with_little_variance_is_steep_but_finite():
    suspect = small_encoder()
    suspect.backbone.features[1].running_var[2] = 0
    result = CLP().purify(suspect, None, Engine(device="cpu"))
    assert 2 in result.findings[0].evidence["channels"]["features.1"]
    assert torch.isfinite(weights(result.network)).all()


def test_a_lower_threshold_prunes_more():
    counts = [
        CLP(threshold=threshold).purify(small_encoder(), None, Engine(device="cpu")).after["pruned_channels"]
        for threshold in (4.0, 2.0, 1.0)
    ]
    assert counts[0] < counts[1] < counts[2]


def test_no_data_is_needed_and_given_data_changes_nothing():
    assert CLP().check("encoder", None) is None
    engine = Engine(device="cpu")
    with_data = CLP(threshold=1.0).purify(small_encoder(), defender_images(), engine).network
    assert torch.equal(weights(with_data), weights(CLP(threshold=1.0).purify(small_encoder(), None, engine).network))


@pytest.mark.parametrize("architecture", ["squeezenet1_0", "vit_b_16"])
def test_a_network_without_batch_norm_is_refused(architecture):
    network = untrained(architecture, kind="encoder", image_size=32)
    with pytest.raises(ConfigError, match=f"{architecture} has none"):
        CLP().purify(network, None, Engine(device="cpu"))


def test_a_network_that_cannot_be_traced_is_refused():
    with pytest.raises(ConfigError, match="cannot trace own"):
        CLP().purify(encoder(Branching()), None, Engine(device="cpu"))


def test_a_negative_threshold_is_refused():
    with pytest.raises(ConfigError, match="threshold"):
        CLP(threshold=-1)
