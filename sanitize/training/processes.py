"""Several processes that train one network: how they are found, what they tell each other, and how they end."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_utilities.core import rank_zero
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_map_only

from sanitize.errors import ConfigError, TrainingError
from sanitize.types import Report

Value = TypeVar("Value")

PATIENCE = 20.0
"""Seconds that the first process has to notice the failure of another by itself."""

_LOOK = 0.2  # seconds between looks at what others said
_FAILED, _REPORTED = "failed", "reported"
_ERROR = 2  # exit code
_CPP_LEVEL = "TORCH_CPP_LOG_LEVEL"


class Replicas(DDPStrategy):
    """Fabric's DDP without torch's wrapper, which allows one forward pass a step: `Engine.fit` averages gradients."""

    def setup_module(self, module: nn.Module) -> nn.Module:  # type: ignore[override]
        """The module itself."""
        return module


def world(devices: int | None, num_nodes: int | None) -> tuple[int, int]:
    """Processes a machine and machines: as asked for, else as torchrun or srun has started them, else one.

    Args:
        devices: Asked for, or None.
        num_nodes: Asked for, or None.

    Raises:
        ConfigError: torchrun or srun has started another number than is asked for.
    """
    local, nodes = 1, 1
    if TorchElasticEnvironment.detect():
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // local
    elif SLURMEnvironment.detect() and "SLURM_STEP_NUM_TASKS" in os.environ:  # a step of srun, not the batch script
        nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", 1))
        local = int(os.environ["SLURM_STEP_NUM_TASKS"]) // nodes
    asked = devices or local, num_nodes or nodes
    if local * nodes > 1 and asked != (local, nodes):
        raise ConfigError(
            f"{local * nodes} processes were started, {local} on each of {nodes} machine(s), and --devices "
            f"{asked[0]} --num-nodes {asked[1]} ask for others. Leave both out."
        )
    return asked


def require_splittable(method: str, splittable: Collection[str], devices: int, num_nodes: int) -> None:
    """Whether a method's steps can be split among so many processes.

    Raises:
        ConfigError: They cannot.
    """
    if devices * num_nodes > 1 and method not in splittable:
        raise ConfigError(
            f"{method} works with one process only, and {devices * num_nodes} are asked for: its steps cannot be "
            f"split. Those of {', '.join(sorted(splittable))} can."
        )


def require_one_process(work: str) -> None:
    """Whether a job that is not split was started once.

    Raises:
        ConfigError: torchrun or srun has started several processes, each of which would do all of it.
    """
    devices, nodes = world(None, None)
    if devices * nodes > 1:
        raise ConfigError(
            f"{work} takes one process, and {devices * nodes} were started. Start it without torchrun, or with one "
            "task."
        )


def first_process() -> bool:
    """Whether this process is the one that reports: always, but for the others of a job of many processes."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


@contextmanager
def quiet_launch() -> Iterator[None]:
    """Without Fabric's notes about the processes that it starts, and without the C++ traces of those that end."""
    loggers = [logging.getLogger("lightning_fabric.utilities.distributed"), rank_zero.log]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    asked = os.environ.get(_CPP_LEVEL)
    os.environ.setdefault(_CPP_LEVEL, "ERROR")  # read when torch is imported: by the processes that are started now
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if asked is None:
            os.environ.pop(_CPP_LEVEL, None)


class Processes:
    """The processes of a job. Each has the whole network and all images; the first one writes and reports.

    All of them go through the same work in the same order. What they compute together goes through `torch.distributed`;
    what they say beside it (that a job begins, its report, that one has failed) through a store of the first process.

    Args:
        fabric: Launched.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.count: int = fabric.world_size
        self.rank: int = fabric.global_rank
        self._device = fabric.device
        self._together = False
        self._over = threading.Event()
        if self.count > 1:
            self._store = self._meet(fabric)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def rows(self, count: int) -> list[int]:
        """How many of `count` rows each process has; they differ by one at most.

        Example:
            >>> processes = Processes(Fabric(accelerator="cpu", devices=1))
            >>> processes.rows(5)
            [5]
        """
        return [count // self.count + (rank < count % self.count) for rank in range(self.count)]

    def gather(self, values: Tensor) -> Tensor:
        """The tensors of all processes, (processes, ...), of one shape; gradients flow back to where they came from."""
        gathered: Tensor = _Gather.apply(values.contiguous(), self.rank, self.count)
        return gathered

    def in_turns(self, parts: Iterable[Value], do: Callable[[Value], Tensor]) -> Iterator[Tensor]:
        """Results of work whose parts are dealt out in turns; every process gets all of them, in the order of parts.

        Whatever the number of processes, each part is done as a whole by one of them, so that the bits do not depend
        on that number. Where that may fail, put `together` around it.

        Args:
            parts: The same in all processes, and gone through by all: making a part may draw numbers.
            do: Gives (rows, ...) for a part, on the device; parts differ in the rows only.

        Example:
            >>> processes = Processes(Fabric(accelerator="cpu", devices=1))
            >>> list(processes.in_turns([2, 3], torch.arange))
            [tensor([0, 1]), tensor([0, 1, 2])]
        """
        if self.count == 1:
            yield from map(do, parts)
            return
        parts = iter(parts)
        while True:
            own: list[Value] = []
            dealt = 0
            for part in islice(parts, self.count):
                if dealt <= self.rank:  # of the last turn, the last part for those who get none
                    own = [part]
                dealt += 1
            if not dealt:
                return
            result = do(own[0])
            rows = self.gather(torch.tensor([len(result)], device=self._device)).flatten().tolist()
            padding = [0] * (2 * result.ndim - 1) + [max(rows) - len(result)]
            gathered = self.gather(functional.pad(result, padding))
            yield from (gathered[number, : rows[number]] for number in range(dealt))

    def same(self, value: Value) -> Value:
        """What the first process has; tensors come back on the CPU."""
        if self.count == 1:
            return value
        boxed = [tree_map_only(Tensor, lambda tensor: tensor.detach().cpu(), value)]
        dist.broadcast_object_list(boxed, src=0, device=self._device)
        received: Value = boxed[0]
        return received

    @torch.no_grad()
    def same_network(self, network: nn.Module) -> None:
        """Give the first process's weights and buffers to all."""
        if self.count > 1:
            for tensor in (*network.parameters(), *network.buffers()):
                sent = tensor.detach().contiguous()
                dist.broadcast(sent, src=0)
                tensor.copy_(sent)

    @torch.no_grad()
    def average_gradients(self, network: nn.Module) -> None:
        """Mean of the processes' gradients, by one reduction for each type of number."""
        if self.count == 1:
            return
        gradients: dict[torch.dtype, list[Tensor]] = {}
        for parameter in network.parameters():
            if parameter.grad is not None:
                gradients.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for group in gradients.values():
            flat = torch.cat([gradient.flatten() for gradient in group])
            dist.all_reduce(flat)
            flat /= self.count
            for gradient, mean in zip(group, torch.split(flat, [one.numel() for one in group]), strict=True):
                gradient.copy_(mean.view_as(gradient))

    @contextmanager
    def together(self, work: str) -> Iterator[None]:
        """Around what all processes compute together; the failure of another one is told instead of its consequence.

        Args:
            work: What it is; must be the same everywhere.

        Raises:
            TrainingError: Another process has failed, or does something else.
        """
        if self.count == 1:
            yield
            return
        outer, self._together = self._together, True
        try:
            self._require_same(work)
            yield
        except RuntimeError as error:
            message = self._failure_of_others(error)
            if message is None:
                raise
            raise TrainingError(message) from error
        finally:
            self._together = outer

    def tell(self, key: str, value: Any) -> None:
        """Say something once to all others; JSON."""
        if self.count > 1:
            self._store.set(key, json.dumps(value))

    def hear(self, key: str) -> Any:
        """Wait, without a limit, until the first process says something."""
        while not self._store.check([key]):
            if self._store.check([_FAILED]):
                raise TrainingError("another process has failed.")
            time.sleep(_LOOK)
        return json.loads(self._store.get(key))

    def require_same_job(self, wanted: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """Whether this process has read what the first one has.

        Args:
            wanted: What decides the result, in the first process.
            own: The same in this one.

        Raises:
            ConfigError: They differ.
        """
        changed = sorted(key for key in {*wanted, *own} if wanted.get(key) != own.get(key))
        if changed:
            raise ConfigError(
                f"this process does not have the job of the first one ({', '.join(changed)} differ). Give all of them "
                "the same command and files."
            )

    def report(self, lead: Callable[[], Report], follow: Callable[[], None]) -> Report:
        """The report of a job, in every process; the error of one ends all.

        Args:
            lead: Does the job and writes its results; called in the first process.
            follow: Takes part in the work that is shared; called in the others.
        """
        with self.guarded():
            if self.first:
                made = lead()
                self.tell("report", made.to_dict())
                return made
            follow()
            return Report.from_dict(self.hear("report"))

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Around a job: the error of one process ends all, and the first one reports it.

        The others end silently, with exit code 0, so that what started them leaves the first one alone.
        """
        if self.count == 1:
            yield
            return
        threading.Thread(target=self._watch, name="sanitize-processes", daemon=True).start()
        try:
            yield
        except BaseException as error:
            self._over.set()
            self._say_failure(error)
            if not self.first:
                os._exit(0)
            raise
        self._part()
        self._over.set()

    def _meet(self, fabric: Fabric) -> Any:
        """A store beside that of `torch.distributed`, which is torchrun's own where that has started the processes."""
        assert isinstance(fabric.strategy, DDPStrategy) and fabric.strategy.cluster_environment is not None
        address = fabric.strategy.cluster_environment.main_address
        limit = timedelta(minutes=5)
        made: Callable[..., Any] = dist.TCPStore  # type: ignore[attr-defined]
        if self.first:
            store = made(address, 0, is_master=True, wait_for_workers=False, timeout=limit)
            fabric.broadcast(store.port)
        else:
            store = made(address, fabric.broadcast(0), is_master=False, wait_for_workers=False, timeout=limit)
        return store

    def _require_same(self, work: str) -> None:
        number = int.from_bytes(hashlib.sha256(work.encode()).digest()[:7], "little")
        numbers = self.gather(torch.tensor([number], device=self._device))
        if bool((numbers != number).any()):
            raise TrainingError(
                f"the processes of this job do not do the same (this one: {work}). Give all of them the same command, "
                "files and versions."
            )

    def _failure_of_others(self, error: RuntimeError) -> str | None:
        """What another process said before it ended; None where this error is this process's own."""
        with suppress(RuntimeError):  # the store ends with the first process
            for _ in range(round(2 / _LOOK)):
                if self._store.check([_FAILED]):
                    rank, message = json.loads(self._store.get(_FAILED))
                    return None if rank == self.rank else f"process {rank + 1} of {self.count} failed: {message}"
                time.sleep(_LOOK)
        if isinstance(error, dist.DistError) or "by peer" in str(error):
            return (
                "another process of this job ended without a word: it was killed, or ran out of memory. "
                "Give the same command with --resume to continue."
            )
        return None

    def _say_failure(self, error: BaseException) -> None:
        with suppress(Exception):
            if not self._store.check([_FAILED]):
                text = " ".join(str(error).split())
                self._store.set(_FAILED, json.dumps((self.rank, text or type(error).__name__)))

    def _part(self) -> None:
        """The first process, whose store it is, leaves last."""
        with suppress(RuntimeError):
            self._store.set(f"{_REPORTED}/{self.rank}", "")
            if self.first:
                self._store.wait([f"{_REPORTED}/{rank}" for rank in range(self.count)], timedelta(seconds=PATIENCE))

    def _watch(self) -> None:
        """End this process when another has failed and this one hangs in work that takes both."""
        while not self._over.wait(_LOOK):
            if self._anyone_failed() and not self._over.wait(PATIENCE) and (self._together or not self.first):
                if self.first:
                    _, message = json.loads(self._store.get(_FAILED))
                    sys.stderr.write(f"error: another process failed: {message}\n")
                    sys.stderr.flush()
                os._exit(_ERROR if self.first else 0)

    def _anyone_failed(self) -> bool:
        try:
            return bool(self._store.check([_FAILED]))
        except RuntimeError:  # the store has gone, and the first process with it
            return True


class _Gather(torch.autograd.Function):
    """All processes' tensors, stacked; backward, each gets the sum of all gradients of its own part.

    With a loss that every process computes from the same gathered tensors, and gradients of the weights that are
    averaged over the processes, the result is the gradient of that loss.
    """

    @staticmethod
    def forward(context: Any, values: Tensor, rank: int, count: int) -> Tensor:
        context.rank = rank
        parts = [torch.empty_like(values) for _ in range(count)]
        if count > 1:
            dist.all_gather(parts, values)
        else:
            parts = [values]
        return torch.stack(parts)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        summed = gradient.contiguous().clone()
        if dist.is_initialized():
            dist.all_reduce(summed)
        return summed[context.rank], None, None
