"""Seconds to score every channel of a network: batched, against one SVD a channel.

Processor time on a CPU, so that other work on the machine does not count; wall time on a GPU.

python benchmarks/clp_speed.py [ARCHITECTURE ...]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sanitize.defenses.clp import channel_deviations, pairs
from sanitize.functional.lipschitz import deviations
from sanitize.suspects import untrained

REPEATS = 3


def one_by_one(convolution: nn.Conv2d, norm: _BatchNorm) -> Tensor:
    """Channel by channel: take the kernel, scale it, decompose it, as the paper's code does."""
    assert norm.running_var is not None
    scale = (norm.weight.abs() / (norm.running_var + norm.eps).sqrt()).detach()
    norms = []
    for channel in range(convolution.out_channels):
        kernel = convolution.weight[channel].detach().flatten(start_dim=1) * scale[channel]
        norms.append(torch.linalg.svd(kernel, full_matrices=False).S.max())
    return deviations(torch.stack(norms))


def seconds(score: Callable[[nn.Conv2d, _BatchNorm], Tensor], layers: list[tuple[nn.Conv2d, _BatchNorm]]) -> float:
    """Fastest of several passes over all layers."""
    on_gpu = layers[0][0].weight.is_cuda
    clock = time.perf_counter if on_gpu else time.process_time
    times = []
    for _ in range(REPEATS):
        started = clock()
        for convolution, norm in layers:
            score(convolution, norm)
        if on_gpu:
            torch.cuda.synchronize()
        times.append(clock() - started)
    return min(times)


def main(architectures: list[str]) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, fastest of {REPEATS}")
    print("| network | channels | one by one, s | batched, s | factor | largest difference |")
    print("|---|---|---|---|---|---|")
    for architecture in architectures:
        network = untrained(architecture, kind="encoder", image_size=64).to(device)
        layers = [(convolution, norm) for _, convolution, norm in pairs(network)]
        difference = max(float((one_by_one(*layer) - channel_deviations(*layer)).abs().max()) for layer in layers)
        slow, fast = seconds(one_by_one, layers), seconds(channel_deviations, layers)
        channels = sum(norm.num_features for _, norm in layers)
        print(f"| {architecture} | {channels} | {slow:.3f} | {fast:.3f} | {slow / fast:.1f} | {difference:.1e} |")


if __name__ == "__main__":
    main(sys.argv[1:] or ["resnet18-cifar", "resnet50", "mobilenet_v3_large"])
