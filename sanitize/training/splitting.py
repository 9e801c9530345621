"""One forward pass by many processes: each takes some rows of the batch, and all get all outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map_only

from sanitize.errors import TrainingError
from sanitize.training.processes import Processes


class Split(nn.Module):
    """A network whose batches are split among processes, as a network that has seen the whole batch.

    Inputs are tensors (N, ...) or nested tuples of them, the same in all processes; so are the outputs. Losses then
    need not know of the processes, also where they look across the batch. Batch norm has the statistics of all N rows
    (see `SharedBatchNorm`). What cannot be split is done whole by every process: fewer rows than processes, and a
    network that draws numbers itself (dropout), which would draw others for a part of the batch.

    Args:
        module: What is called.
        network: The network in it.
        processes: Who shares the work.
        say: Told when a network cannot be split.
    """

    def __init__(self, module: nn.Module, network: nn.Module, processes: Processes, say: Callable[[str], None]) -> None:
        super().__init__()
        self.module = module
        self.sizes: list[int] | None = None
        """Rows of each process in the forward pass that runs; None where it is not split."""
        self.processes = processes
        self._network = network
        self._say = say
        self._tried = self._whole = False

    def forward(self, *inputs: Any) -> Any:
        """Outputs of the module for the whole batch.

        Raises:
            TrainingError: Inputs or outputs are not rows of one batch, or the network began to draw numbers.
        """
        tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
        if self._whole or not tensors or len(tensors[0]) < self.processes.count:
            return self.module(*inputs)
        saved = None if self._tried else copy.deepcopy(self._network.state_dict())
        before = _random_states(tensors[0].device)
        outputs = self._split(inputs, tensors)
        if all(map(torch.equal, before, _random_states(tensors[0].device))):
            self._tried = True
            return outputs
        if saved is None:
            raise TrainingError("the network draws random numbers in some steps only. Use one process.")
        self._say("The network draws random numbers (dropout): every process does each batch whole.")
        self._whole = True
        self._network.load_state_dict(saved)
        _restore_random(tensors[0].device, before)
        return self.module(*inputs)

    def _split(self, inputs: Any, tensors: list[Tensor]) -> Any:
        sizes = self.processes.rows(len(tensors[0]))
        if any(len(tensor) != sum(sizes) for tensor in tensors):
            raise TrainingError("the network is given tensors of different lengths. Use one process.")
        start, own = sum(sizes[: self.processes.rank]), sizes[self.processes.rank]

        def gathered(output: Tensor) -> Tensor:
            if len(output) != own:
                raise TrainingError("the network's outputs are not rows of its batch. Use one process.")
            return _gathered(output, sizes, self.processes)

        self.sizes = sizes
        try:
            outputs = self.module(*tree_map_only(Tensor, lambda tensor: tensor[start : start + own], inputs))
        finally:
            self.sizes = None
        return tree_map_only(Tensor, gathered, outputs)


def spread(network: Callable[[Tensor], Tensor], processes: Processes) -> Callable[[Tensor], Tensor]:
    """A network that is not trained, with the rows of its batches split among the processes.

    Every process gets the outputs of all rows and, in the backward pass, the gradients of all inputs. Each must
    make the same of the outputs. Parameters get the gradient of a process's own rows only.

    Args:
        network: Images (N, 3, H, W) -> (N, D), in eval mode.
        processes: Who shares the work.
    """

    def outputs(images: Tensor) -> Tensor:
        if len(images) < processes.count:
            return network(images)
        sizes = processes.rows(len(images))
        own: Tensor = _OwnRows.apply(images, sizes, processes)
        rows: Tensor = _AllRows.apply(network(own), sizes, processes)
        return rows

    return network if processes.count == 1 else outputs


class _OwnRows(torch.autograd.Function):
    """The rows of this process; backwards, the gradients of all rows."""

    @staticmethod
    def forward(context: Any, values: Tensor, sizes: list[int], processes: Processes) -> Tensor:
        context.sizes, context.processes = sizes, processes
        return torch.split(values, sizes)[processes.rank].clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _gathered(gradients[0], context.sizes, context.processes), None, None


class _AllRows(torch.autograd.Function):
    """The rows of all processes; backwards, the gradients of this process's own."""

    @staticmethod
    def forward(context: Any, values: Tensor, sizes: list[int], processes: Processes) -> Tensor:
        context.sizes, context.rank = sizes, processes.rank
        return _gathered(values, sizes, processes)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return torch.split(gradients[0], context.sizes)[context.rank], None, None


def _gathered(values: Tensor, sizes: list[int], processes: Processes) -> Tensor:
    padding = [0] * (2 * values.ndim - 1) + [max(sizes) - len(values)]
    parts = processes.gather(functional.pad(values, padding))
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


class SharedBatchNorm(_BatchNorm):
    """Batch norm over the rows of all processes, with another layer's weights and statistics.

    torch's `SyncBatchNorm` does the same on GPUs only.
    """

    split: Split

    @classmethod
    def of(cls, layer: _BatchNorm, split: Split) -> Self:
        """Made from a layer, whose parameters and buffers it uses."""
        made = cls(layer.num_features, layer.eps, layer.momentum, affine=False, track_running_stats=False)
        object.__setattr__(made, "split", split)  # not as a child
        made.affine, made.track_running_stats = layer.affine, layer.track_running_stats
        made.weight, made.bias = layer.weight, layer.bias
        made.running_mean, made.running_var = layer.running_mean, layer.running_var
        made.num_batches_tracked = layer.num_batches_tracked
        return made.train(layer.training)

    def forward(self, values: Tensor) -> Tensor:
        """(N, C, ...), normalised."""
        sizes = self.split.sizes
        if sizes is None or not (self.training or self.running_mean is None):
            return super().forward(values)
        with torch.autocast(values.device.type, enabled=False):
            exact = values if values.dtype == torch.float64 else values.float()
            return self._shared(exact, sizes).to(values.dtype)

    def _shared(self, values: Tensor, sizes: list[int]) -> Tensor:
        others = [0, *range(2, values.ndim)]
        shape = [1, -1] + [1] * (values.ndim - 2)
        mean = values.mean(dim=others)
        squares = (values - mean.view(shape)).square().sum(dim=others)
        means, all_squares = self.split.processes.gather(torch.stack([mean, squares])).unbind(dim=1)
        pixels = values[0, 0].numel()
        counts = torch.tensor([[size * pixels] for size in sizes], dtype=mean.dtype, device=mean.device)
        total = sum(sizes) * pixels
        mean = (counts * means).sum(dim=0) / total
        # Chan et al.: the squares within each part, and those of the parts' means.
        squares = (all_squares + counts * (means - mean).square()).sum(dim=0)
        if self.training:
            self._follow(mean, squares / (total - 1))
        scale = (squares / total + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        normed = (values - mean.view(shape)) * scale.view(shape)
        return normed if self.bias is None else normed + self.bias.view(shape)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)

    def _check_input_dim(self, values: Tensor) -> None:
        return None


@contextmanager
def shared_batch_norms(network: nn.Module, split: Split) -> Iterator[None]:
    """Every batch norm of a network as a `SharedBatchNorm`, and afterwards as it was."""
    places = [
        (parent, name, layer)
        for parent in network.modules()
        for name, layer in parent._modules.items()  # named_children() leaves out what is there twice
        if isinstance(layer, _BatchNorm)
    ]
    for parent, name, layer in places:
        setattr(parent, name, SharedBatchNorm.of(layer, split))
    try:
        yield
    finally:
        for parent, name, layer in places:
            layer.train(getattr(parent, name).training)
            setattr(parent, name, layer)


def _random_states(device: torch.device) -> list[Tensor]:
    """States of torch's global generators, which networks draw from."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _restore_random(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
