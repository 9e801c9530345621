"""Convolution fused with self-attention: against slow loops, at every map size, and through package and ONNX."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from sanitize.errors import ConfigError
from sanitize.export.onnx import export_onnx
from sanitize.export.package import read_package, write_package
from sanitize.suspects import build, untrained
from sanitize.suspects.attention import HEADS, KERNEL, ConvAttention, with_attention
from sanitize.suspects.cifar import CifarResNet, SmallCNN

SIZES = [(7, 7, 1), (7, 6, 2), (2, 2, 1), (3, 3, 2), (9, 5, 2)]  # height, width, stride
by_size = pytest.mark.parametrize(("height", "width", "stride"), SIZES)


def layer(stride: int = 1, *, inputs: int = 6, outputs: int = 8, window: int = 5) -> ConvAttention:
    """One whose parameters are all random."""
    torch.manual_seed(0)
    made = ConvAttention(inputs, outputs, stride=stride, window=window)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.7)
    return made.double()


def maps(height: int, width: int, channels: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, channels, height, width, generator=generator, dtype=torch.float64)


def projections(made: ConvAttention, images: Tensor) -> Tensor:
    """(3, heads, N, d, H, W), by a plain matrix product."""
    weight, bias = made.qkv.weight[:, :, 0, 0], made.qkv.bias
    found = torch.einsum("oi,nihw->nohw", weight, images) + bias[:, None, None]
    count, _, height, width = found.shape
    return found.view(count, 3, HEADS, made.slots, height, width).permute(1, 2, 0, 3, 4, 5)


def slow_attention(made: ConvAttention, images: Tensor) -> Tensor:
    """Each pixel of its own, with the position term as the paper has it: both e_p and e_r."""
    height, width = images.shape[-2:]
    queries, keys, values = projections(made, images)
    line = [[-1 + 2 * i / max(side - 1, 1) for i in range(side)] for side in (height, width)]
    encode = {
        (y, x): made.position.weight[:, :, 0, 0] @ torch.tensor([line[1][x], line[0][y]], dtype=torch.float64)
        for y in range(height)
        for x in range(width)
    }
    rows = range(0, height, made.stride)
    columns = range(0, width, made.stride)
    output = torch.zeros(len(images), HEADS * made.slots, len(rows), len(columns), dtype=torch.float64)
    for number in range(len(images)):
        for head in range(HEADS):
            for i, y in enumerate(rows):
                for j, x in enumerate(columns):
                    seen = [
                        (v, u)
                        for v in range(max(0, y - made.reach), min(height, y + made.reach + 1))
                        for u in range(max(0, x - made.reach), min(width, x + made.reach + 1))
                    ]
                    query = queries[head, number, :, y, x]
                    scores = torch.stack(
                        [query @ (keys[head, number, :, v, u] + encode[y, x] - encode[v, u]) for v, u in seen]
                    ) / math.sqrt(made.slots)
                    shares = scores.softmax(dim=0)
                    mean = sum(s * values[head, number, :, v, u] for s, (v, u) in zip(shares, seen, strict=True))
                    output[number, head * made.slots : (head + 1) * made.slots, i, j] = mean
    return output


def slow_convolution(made: ConvAttention, images: Tensor) -> Tensor:
    """The maps of all taps are made, then convolved one by one."""
    height, width = images.shape[-2:]
    pieces = projections(made, images).flatten(0, 1)  # (3 heads, N, d, H, W)
    mixed = torch.einsum("tp,pndhw->tndhw", made.taps, pieces)
    rows, columns = range(0, height, made.stride), range(0, width, made.stride)
    output = torch.zeros(len(images), HEADS * made.slots, len(rows), len(columns), dtype=torch.float64)
    for slot in range(made.slots):
        for head in range(HEADS):
            kernel = made.shifts[slot * HEADS + head]  # (taps, 3, 3)
            for i, y in enumerate(rows):
                for j, x in enumerate(columns):
                    for dy in range(KERNEL):
                        for dx in range(KERNEL):
                            v, u = y + dy - KERNEL // 2, x + dx - KERNEL // 2
                            if 0 <= v < height and 0 <= u < width:
                                part = (kernel[:, dy, dx, None] * mixed[:, :, slot, v, u]).sum(dim=0)
                                output[:, head * made.slots + slot, i, j] += part
    return output


@by_size
@torch.no_grad()
def test_the_layer_equals_slow_loops_also_at_the_rim(height, width, stride):
    made, images = layer(stride), maps(height, width)
    attention, convolution = slow_attention(made, images), slow_convolution(made, images)
    assert attention.shape[-2:] == (math.ceil(height / stride), math.ceil(width / stride))
    pieces = made.qkv(images).reshape(2, 3 * HEADS, made.slots, height, width)
    torch.testing.assert_close(made.attention(pieces), attention)
    torch.testing.assert_close(made.convolution(pieces), convolution)
    torch.testing.assert_close(made(images), made.mix_alpha * attention + made.mix_beta * convolution)


@torch.no_grad()
def test_attention_sees_its_window_and_nothing_beyond():
    made, images = layer(window=5), maps(9, 9)
    made.mix_beta.zero_()
    before = made(images)
    changed = images.clone()
    changed[:, :, 0, 0] += 5
    moved = (made(changed) - before).abs().amax(dim=(0, 1)) > 1e-9
    expected = torch.zeros(9, 9, dtype=torch.bool)
    expected[:3, :3] = True
    assert torch.equal(moved, expected)


@torch.no_grad()
def test_position_matters():
    made = layer(window=3)
    made.mix_beta.zero_()
    flat = torch.ones(1, 6, 5, 5, dtype=torch.float64)
    flat[:, :, :, 3:] = -1
    with_position = made(flat)
    made.position.weight.zero_()
    assert not torch.allclose(made(flat), with_position)


@torch.no_grad()
def test_kernels_begin_as_shifts():
    """Tap t moves its map by t: then the convolution is the one whose kernel is the mixing of each tap."""
    made = ConvAttention(6, 8)
    assert made.shifts.shape == (8, 9, 3, 3) and made.shifts.requires_grad
    for tap in range(9):
        assert made.shifts[:, tap].flatten(1).argmax(dim=1).tolist() == [tap] * 8
    assert made.shifts.sum() == 8 * 9 and made.shifts.square().sum() == 8 * 9
    assert (made.mix_alpha.item(), made.mix_beta.item()) == (0.5, 0.5)
    pieces = torch.randn(2, 12, 2, 5, 5)
    kernel = made.taps.T.reshape(1, 12, 3, 3)  # the mixing of tap (dy, dx) is the kernel's value there
    expected = nn.functional.conv2d(pieces.transpose(1, 2).flatten(0, 1), kernel, padding=1).view(2, 2, 5, 5)
    found = made.convolution(pieces)
    torch.testing.assert_close(found, expected.repeat(1, HEADS, 1, 1))  # at first the same for all heads


def test_networks_keep_the_shifts_and_train_every_parameter():
    torch.manual_seed(0)
    network = with_attention(CifarResNet(18, 10, width=8), (1, 2, 3, 4))
    fused = [part for part in network.modules() if isinstance(part, ConvAttention)]
    assert len(fused) == 16
    for part in fused:
        assert torch.equal(part.shifts, ConvAttention(4, 4 * part.slots).shifts)
    network(torch.rand(2, 3, 16, 16)).square().sum().backward()
    still = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.abs().sum()]
    assert still == []


@pytest.mark.parametrize("size", [16, 31, 33])
def test_every_map_size_works(size):
    for network in (with_attention(SmallCNN(10), (1, 4)), with_attention(CifarResNet(18, 10, width=8), (3, 4))):
        assert network(torch.rand(2, 3, size, size)).shape == (2, 10)


def test_stages_are_chosen_by_name():
    def fused(name: str) -> list[str]:
        backbone = build(name, kind="encoder", image_size=32).backbone
        return sorted(
            {part.split(".")[0] for part, made in backbone.named_modules() if isinstance(made, ConvAttention)}
        )

    assert fused("resnet18-narrow-attention") == fused("resnet18-narrow-attention-34") == ["layer3", "layer4"]
    assert fused("resnet18-narrow-attention-1") == ["layer1"]
    assert fused("resnet18-cifar-attention") == ["layer2", "layer3", "layer4"]


@pytest.mark.parametrize("name", ["small-cnn-attention-5", "small-cnn-attention-43", "small-cnn-attention-"])
def test_other_stages_are_refused(name):
    with pytest.raises(ConfigError, match="small-cnn-attention-34"):
        build(name, kind="encoder", image_size=32)


def test_a_network_comes_back_from_package_and_onnx(tmp_path):
    network = untrained("small-cnn-attention-234", kind="classifier", image_size=26, classes=10, normalization="half")
    for value in network.parameters():
        nn.init.normal_(value, std=0.2)
    again = read_package(write_package(network, tmp_path / "package"))
    images = torch.rand(3, 3, 26, 26)
    with torch.inference_mode():
        assert torch.equal(network(images), again(images))
    assert export_onnx(network, tmp_path / "network.onnx", metadata={}) < 1e-4


def test_half_precision_and_channels_last_change_little():
    made, images = layer().float(), maps(9, 9).float()
    with torch.no_grad():
        expected = made(images)
        last = made.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
        torch.testing.assert_close(last, expected, atol=1e-4, rtol=1e-4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            halved = made(images)
    assert (halved - expected).abs().mean() < 0.03 * expected.abs().mean()
