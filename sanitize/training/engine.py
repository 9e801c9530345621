"""The one training loop: every defence, attack and SSL method that optimises a network goes through `Engine.fit`."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sanitize.data.batches import batches
from sanitize.errors import ConfigError, TrainingError
from sanitize.training.checkpoints import Checkpoints
from sanitize.training.processes import Processes, Replicas, quiet_launch
from sanitize.training.progress import Display
from sanitize.training.recorder import NullRecorder, Recorder
from sanitize.training.splitting import Split, shared_batch_norms, spread

Loss = Callable[[nn.Module, Tensor, torch.Generator], dict[str, Tensor]]
"""(network, indices of the batch (B,), generator) -> scalar terms; the term called ``loss`` is minimised."""

Watch = Callable[[nn.Module], tuple[dict[str, float], str | None]]
"""Called with the network after each epoch -> extra metrics, and a reason to stop at once or None."""


class Companion(Protocol):
    """What a stage needs beside the network: works before each epoch, and is kept in the checkpoints."""

    def before_epoch(self, network: nn.Module, generator: torch.Generator) -> dict[str, float]:
        """Look at the network, which is in eval mode, and return metrics of the epoch."""

    def state_dict(self) -> dict[str, Any]:
        """All that an interrupted stage needs to go on: tensors, numbers, strings, lists and dicts."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state, whose tensors lie on the CPU."""


@dataclass
class History:
    """What a stage did: one dict of mean terms an epoch, why it stopped early (if it did), and how fast it was."""

    epochs: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    images: int = 0
    stopped: str | None = None

    @property
    def images_per_second(self) -> float:
        """Training images per second of wall time."""
        return self.images / self.seconds if self.seconds else 0.0


class Engine:
    """Device, precision, seed, checkpoints and progress of a run, and the loop that uses them.

    With several processes (`devices` times `num_nodes`) every process makes an engine, with the same arguments, and
    does the same work. All draw the same batches and views; each takes its rows of a batch through the network; the
    outputs are gathered, so that every process has the loss of the whole batch, and gradients are averaged. The result
    is that of one process but for the order of sums; `forward` gives the same bits. See docs/scaling.md.

    Args:
        device: ``auto``, ``cpu``, ``cuda``, ``mps``.
        precision: A Lightning Fabric precision: ``32-true``, ``bf16-mixed``, ``16-mixed``, ...
        strategy: A Lightning Fabric strategy; ``auto`` by default. With several processes ``auto`` or ``ddp``.
        devices: Processes on each machine, each with a device of its own (on the CPU: each with its own threads).
        num_nodes: Machines.
        seed: Source of all randomness, through `generator`.
        checkpoints: Where epochs are kept, or None to keep none. Of several processes the first one keeps them.
        resume: Continue from what an earlier process left in `checkpoints`; bit-identical on the CPU.
        recorder: Told the metrics of each epoch.
        display: Shows progress, of the first process.
        channels_last: Keep networks in the memory format that convolutions are fastest in, also on a CPU (1.1 to
            1.5 times there), where the last bits of results change with it; when left out on CUDA only.

    Raises:
        ConfigError: The device, precision or strategy is not to be had.
    """

    def __init__(
        self,
        *,
        device: str = "auto",
        precision: str = "32-true",
        strategy: str = "auto",
        devices: int = 1,
        num_nodes: int = 1,
        seed: int = 0,
        checkpoints: Path | None = None,
        resume: bool = False,
        recorder: Recorder | None = None,
        display: Display | None = None,
        channels_last: bool | None = None,
    ) -> None:
        many = devices * num_nodes > 1
        if many and strategy not in ("auto", "ddp"):
            raise ConfigError(f"several processes work with strategy auto or ddp, not {strategy!r}.")
        try:
            with quiet_launch():
                self.fabric = Fabric(
                    accelerator="gpu" if device == "cuda" else device,
                    devices=devices,
                    num_nodes=num_nodes,
                    strategy=Replicas() if many else strategy,
                    precision=precision,  # type: ignore[arg-type]
                )
                self.fabric.launch()
        except Exception as error:  # Fabric raises ValueError, RuntimeError and its own misconfiguration error
            asked = f", {devices} device(s) on {num_nodes} machine(s)" if many else ""
            raise ConfigError(
                f"cannot compute with device {device!r}, precision {precision!r}, strategy {strategy!r}{asked}: "
                f"{error} `sanitize doctor` shows what this machine has."
            ) from error
        self.processes = Processes(self.fabric)
        self._channels_last = self.fabric.device.type == "cuda" if channels_last is None else channels_last
        self.seed = seed
        self.settings = {"device": str(self.fabric.device), "precision": precision, "strategy": strategy}
        if many:
            self.settings |= {"devices": str(devices), "num_nodes": str(num_nodes)}
        first = self.processes.first
        self.recorder = recorder if recorder and first else NullRecorder()
        self.display = display if display and first else Display(quiet=True)
        self._checkpoints = Checkpoints(checkpoints, resume=resume) if checkpoints and first else None

    @property
    def device(self) -> torch.device:
        """Where networks and images are kept."""
        return self.fabric.device

    def generator(self, purpose: str) -> torch.Generator:
        """A CPU generator that depends on the seed and on the purpose alone.

        Example:
            >>> first, again = Engine(seed=1).generator("canary"), Engine(seed=1).generator("canary")
            >>> bool(torch.rand(1, generator=first) == torch.rand(1, generator=again))
            True
        """
        digest = hashlib.sha256(f"{self.seed}/{purpose}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def fit(
        self,
        stage: str,
        network: nn.Module,
        loss: Loss,
        *,
        images: int,
        batch_size: int,
        epochs: int,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer, int], LRScheduler] | None = None,
        max_steps: int | None = None,
        clip_norm: float | None = None,
        drop_last: bool = False,
        train_mode: bool = True,
        watch: Watch | None = None,
        companion: Companion | None = None,
    ) -> History:
        """Train `network` in place.

        Args:
            stage: Name of the stage, for checkpoints, metrics and progress.
            network: Every parameter with ``requires_grad`` is trained.
            loss: Terms of one batch of indices into the training images.
            images: How many training images there are.
            batch_size: Images a step.
            epochs: Passes over the images.
            optimizer: Makes the optimizer from the parameters.
            scheduler: Makes a schedule, stepped after every optimizer step, from the optimizer and the step count.
            max_steps: Stop after so many optimizer steps in all.
            clip_norm: Scale the gradient down to this Euclidean norm where it is larger.
            drop_last: Leave out a last batch that is not full.
            train_mode: ``False`` keeps batch norm and dropout in eval mode.
            watch: Looks at the network after each epoch; may stop the stage.
            companion: Works before each epoch; restored with the network when the stage is resumed.

        Returns:
            The history; complete also when the stage was resumed.

        Raises:
            TrainingError: All parameters are frozen, a loss term or a weight is not finite, or another process failed.
        """
        trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
        if not trainable:
            raise TrainingError(
                f"{stage}: every parameter of the network is frozen, so that nothing can be trained. "
                "Call network.requires_grad_(True)."
            )
        per_epoch = max(1, images // batch_size if drop_last else math.ceil(images / batch_size))
        total = min(epochs * per_epoch, max_steps or epochs * per_epoch)
        if self._channels_last:
            network.to(memory_format=torch.channels_last)  # convolutions then work, and keep activations, in it
        made = optimizer(trainable)
        schedule = scheduler(made, total) if scheduler else None
        wrapped, made = self.fabric.setup(network, made)
        generator = self.generator(stage)
        history = History()
        with self.processes.together(f"the start of stage {stage}, {total} steps, {images} images"):
            self.processes.same_network(network)
            saved = self.processes.same(self._checkpoints.load(stage) if self._checkpoints else None)
        if saved is not None:
            history = _restore(saved, network, made, schedule, generator)
            if companion is not None:
                companion.load_state_dict(saved["companion"])
        # Dropout and stochastic depth know only torch's global generators: theirs is seeded anew for each epoch.
        with (
            torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []),
            self.recorder.stage(stage),
            self.display.stage(stage, total - history.steps) as progress,
            self.processes.together(f"stage {stage}"),
            self._shared(wrapped, network) as module,
        ):
            module.train(train_mode)
            for number, values in enumerate(history.epochs):
                self.recorder.metrics(stage, values, number)
            while history.steps < total and history.stopped is None:
                started, count = time.perf_counter(), 0
                sums: dict[str, Tensor | float] = {}
                prepared: dict[str, float] = {}
                if companion is not None:
                    module.eval()
                    prepared = self._prepare(companion, network, generator)
                    module.train(train_mode)
                torch.manual_seed(self.generator(f"{stage}/layers/{len(history.epochs)}").initial_seed())
                for indices in batches(images, batch_size, generator, drop_last=drop_last and images >= batch_size):
                    made.zero_grad(set_to_none=True)
                    terms = loss(module, indices, generator)
                    self.fabric.backward(terms["loss"])
                    self.processes.average_gradients(network)
                    if clip_norm is not None:
                        # What is not finite is told at the end of the epoch or stage; fp16 skips such a step.
                        self.fabric.clip_gradients(wrapped, made, max_norm=clip_norm, error_if_nonfinite=False)
                    made.step()
                    if schedule is not None:
                        schedule.step()
                    for name, term in terms.items():
                        sums[name] = sums.get(name, 0.0) + term.detach()
                    count += 1
                    history.steps += 1
                    history.images += len(indices)
                    progress.advance(len(indices))
                    if history.steps >= total:
                        break
                values = {name: float(value) / count for name, value in sums.items()} | prepared
                values = self.processes.same(values)
                _require_finite(values, stage, len(history.epochs))
                history.seconds += time.perf_counter() - started
                if watch is not None:
                    with torch.no_grad():
                        module.eval()
                        extra, history.stopped = self.processes.same(watch(network))
                        module.train(train_mode)
                    _require_finite(extra, stage, len(history.epochs))
                    values |= extra
                progress.epoch(len(history.epochs), values["loss"])
                self.recorder.metrics(stage, values, len(history.epochs))
                history.epochs.append(values)
                if self._checkpoints:
                    state = _snapshot(network, made, schedule, generator, history)
                    if companion is not None:
                        state["companion"] = companion.state_dict()
                    self._checkpoints.save(stage, state)
        _require_finite_parameters(network, stage)
        network.eval()
        return history

    @torch.inference_mode()
    def forward(
        self,
        network: nn.Module,
        pixels: Callable[[Tensor], Any],
        count: int,
        *,
        batch_size: int = 512,
    ) -> Tensor:
        """Outputs of a network in eval mode for images 0 .. count-1.

        With several processes each takes whole batches in turns, and all get the same bits as one process. All of them
        make the input of all batches, so that numbers are drawn there, and not in the network.

        Args:
            network: Moved to the device of the run.
            pixels: Indices (B,) -> images (B, 3, H, W) in [0, 1], or what else the network takes.
            count: How many images.
            batch_size: Images at a time.

        Returns:
            (count, D) float32 on the CPU.
        """
        network = network.to(self.device).eval()

        def passed(shown: Any) -> Tensor:
            with self.fabric.autocast():
                outputs: Tensor = network(shown).float()
            return outputs

        shown = map(pixels, batches(count, batch_size, None))
        with self.processes.together(f"a forward pass of {count} images"):
            return torch.cat([outputs.cpu() for outputs in self.processes.in_turns(shown, passed)])

    def spread(self, network: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """A network that is only asked, also for gradients of its inputs, with its batches split among the processes.

        All processes must go through the same calls, with the same inputs; see `sanitize.training.splitting.spread`.
        """
        return spread(network, self.processes)

    @contextmanager
    def _shared(self, wrapped: nn.Module, network: nn.Module) -> Iterator[nn.Module]:
        """What a loss is given: the network, or one that splits its batches among the processes."""
        if self.processes.count == 1:
            yield wrapped
            return
        split = Split(wrapped, network, self.processes, self.display.say)
        with shared_batch_norms(network, split):
            yield split

    def _prepare(self, companion: Companion, network: nn.Module, generator: torch.Generator) -> dict[str, float]:
        prepared = companion.before_epoch(network, generator)
        if self.processes.count == 1:
            return prepared
        companion.load_state_dict(self.processes.same(companion.state_dict()))
        return self.processes.same(prepared)


def _require_finite(values: dict[str, float], stage: str, epoch: int) -> None:
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise TrainingError(
            f"stage {stage!r}, epoch {epoch}: {', '.join(bad)} became NaN or infinite. "
            "Lower the learning rate, or use --precision 32-true."
        )


def _require_finite_parameters(network: nn.Module, stage: str) -> None:
    """The last step may have spoiled a network whose losses were finite until then."""
    if not all(bool(torch.isfinite(parameter).all()) for parameter in network.parameters()):
        raise TrainingError(
            f"stage {stage!r}: weights became NaN or infinite in the last steps. "
            "Lower the learning rate, or use --precision 32-true."
        )


def _snapshot(
    network: nn.Module,
    optimizer: Any,
    schedule: LRScheduler | None,
    generator: torch.Generator,
    history: History,
) -> dict[str, Any]:
    return {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict() if schedule else {},
        "generator": generator.get_state(),
        "history": asdict(history),
    }


def _restore(
    saved: dict[str, Any],
    network: nn.Module,
    optimizer: Any,
    schedule: LRScheduler | None,
    generator: torch.Generator,
) -> History:
    network.load_state_dict(saved["network"])
    optimizer.load_state_dict(saved["optimizer"])
    if schedule is not None:
        schedule.load_state_dict(saved["schedule"])
    generator.set_state(saved["generator"])
    return History(**saved["history"])
