"""Networks for small images whose 3x3 convolutions are fused with self-attention, from the same 1x1 projections."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional

from sanitize.suspects.cifar import CifarResNet, SmallCNN

HEADS = 4
WINDOW = 7  # px a side, of the attention
KERNEL = 3  # px a side, of the convolution


class ConvAttention(nn.Module):
    """Convolution and local self-attention from shared 1x1 projections (ACmix; Pan et al., CVPR 2022, equations 5-15).

    One 1x1 convolution gives queries, keys and values in N heads of d channels. Two paths use them:

    - Attention: position p attends to the positions r of the window around it, with weights
      ``softmax_r(q_p . (k_r + e_p - e_r) / sqrt(d))``; e is a linear map of the coordinates, -1 to 1. The term with
      e_p is the same for all r and drops out, so that this is plain attention with the keys ``k - e``.
    - Convolution: in each of the d channel slots, the 3N pieces are mixed into one map a tap of the kernel, and these
      are shifted and summed by a grouped convolution, whose kernels begin as shifts (one-hot) and are learned.

    The output is ``mix_alpha * attention + mix_beta * convolution``, both learned, 0.5 at first.

    Attention is torch's fused kernel over all positions, with the windows as its mask. Keys are not copied for each
    place of a window and scores are not kept: for 1,024 views (a batch of 512) of 64 channels at 32x32, queries, keys,
    values and result are 268 MB each in float32; keys unfolded by windows of 7x7 would be 13 GB, scores 17 GB.

    Differs from ACmix:
        - At the rim the window is cut off; ACmix reflects keys, which fails on maps of half a window's side.
        - Any map size works, also an odd one with a stride.
        - The convolution's output has the attention's channel order, by heads.
        - Biases without effect (of e, and before batch norm of the mixed maps) are left out.

    Args:
        inputs: Channels.
        outputs: C = N d, a multiple of 4, the number of heads.
        stride: Of the output's positions.
        window: Side of the attention's window, odd.

    Example:
        >>> ConvAttention(16, 32, stride=2)(torch.rand(2, 16, 7, 7)).shape
        torch.Size([2, 32, 4, 4])
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, window: int = WINDOW) -> None:
        super().__init__()
        self.stride = stride
        self.reach = window // 2
        self.slots = outputs // HEADS
        taps = KERNEL * KERNEL
        self.qkv = nn.Conv2d(inputs, 3 * outputs, 1)
        self.position = nn.Conv2d(2, self.slots, 1, bias=False)
        self.taps = nn.Parameter(torch.empty(taps, 3 * HEADS))
        nn.init.kaiming_uniform_(self.taps, a=math.sqrt(5))  # as a linear layer
        # A parameter and no layer: networks that initialise all their convolutions leave it alone.
        self.shifts = nn.Parameter(torch.eye(taps).view(1, taps, KERNEL, KERNEL).repeat(outputs, 1, 1, 1))
        self.mix_alpha = nn.Parameter(torch.tensor(0.5))
        self.mix_beta = nn.Parameter(torch.tensor(0.5))

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, ceil(H / stride), ceil(W / stride)) of (N, inputs, H, W)."""
        pieces = self.qkv(maps)
        pieces = pieces.reshape(-1, 3 * HEADS, self.slots, *pieces.shape[-2:])
        return self.mix_alpha * self.attention(pieces) + self.mix_beta * self.convolution(pieces)

    def attention(self, pieces: Tensor) -> Tensor:
        """The attention path.

        Args:
            pieces: (N, 3 heads, d, H, W): queries, keys and values of every head.

        Returns:
            (N, C, H', W').
        """
        height, width = pieces.shape[-2:]
        queries, keys, values = pieces.chunk(3, dim=1)
        queries = queries[..., :: self.stride, :: self.stride]
        shape = queries.shape[-2:]
        keys = keys - self.position(_coordinates(height, width, keys))
        # Fused kernels take tensors whose last dimension is dense.
        asked, known, told = (piece.flatten(3).mT.contiguous() for piece in (queries, keys, values))
        found = functional.scaled_dot_product_attention(
            asked, known, told, attn_mask=self._windows(height, width, keys)
        )
        return found.mT.reshape(-1, HEADS * self.slots, *shape)

    def convolution(self, pieces: Tensor) -> Tensor:
        """The convolution path; see `attention`."""
        # Mixing and shifting are linear, so that they are one grouped convolution, and no mixed map is ever made.
        kernels = torch.einsum("otyx,tp->opyx", self.shifts, self.taps)
        slots = pieces.transpose(1, 2).flatten(1, 2)  # the 3N pieces of the first slot, of the second ...
        summed = functional.conv2d(slots, kernels, stride=self.stride, padding=KERNEL // 2, groups=self.slots)
        return summed.reshape(-1, self.slots, HEADS, *summed.shape[-2:]).transpose(1, 2).flatten(1, 2)

    def _windows(self, height: int, width: int, like: Tensor) -> Tensor | None:
        """(H' W', H W) bool: which keys a query sees; None where every one sees all."""
        if self.reach >= max(height, width) - 1:
            return None
        rows, columns = (self._near(side, like) for side in (height, width))
        return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(2).flatten(0, 1)

    def _near(self, side: int, like: Tensor) -> Tensor:
        places = torch.arange(side, device=like.device)
        return (places[:: self.stride, None] - places).abs() <= self.reach


def _coordinates(height: int, width: int, like: Tensor) -> Tensor:
    """(1, 2, H, W): x and y from -1 to 1."""
    x, y = (torch.linspace(-1, 1, side, device=like.device, dtype=like.dtype) for side in (width, height))
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)])[None]


def with_attention(network: nn.Module, stages: Collection[int]) -> nn.Module:
    """The network with `ConvAttention` in place of every 3x3 convolution of some stages.

    Differs from the paper ("Self-supervised learning backdoor defense mixed with self-attention mechanism"), which does
    not say which of its blocks have attention: that is chosen by stages here. A layer is about half the size of the
    convolution that it replaces.

    Args:
        network: A `CifarResNet` or `SmallCNN`, untrained; changed in place.
        stages: From 1 (the largest maps) to 4.

    Example:
        >>> with_attention(SmallCNN(10), stages=(3, 4))(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    for stage in stages:
        for parent, name in _convolutions(network, stage):
            old = getattr(parent, name)
            setattr(parent, name, ConvAttention(old.in_channels, old.out_channels, stride=old.stride[0]))
    return network


def _convolutions(network: nn.Module, stage: int) -> list[tuple[nn.Module, str]]:
    """(parent, name) of the 3x3 convolutions of a stage."""
    if isinstance(network, CifarResNet):
        return [(block, name) for block in getattr(network, f"layer{stage}") for name in ("conv1", "conv2")]
    assert isinstance(network, SmallCNN)
    places = [name for name, layer in network.features.named_children() if isinstance(layer, nn.Conv2d | ConvAttention)]
    return [(network.features, places[stage - 1])]
