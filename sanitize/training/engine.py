"""The one training loop: every defence, attack and SSL method that optimises a network goes through `Engine.fit`."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable
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
from sanitize.training.progress import Display
from sanitize.training.recorder import NullRecorder, Recorder

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

    Args:
        device: ``auto``, ``cpu``, ``cuda``, ``mps``.
        precision: A Lightning Fabric precision: ``32-true``, ``bf16-mixed``, ``16-mixed``, ...
        strategy: A Lightning Fabric strategy; ``auto`` by default.
        seed: Source of all randomness, through `generator`.
        checkpoints: Where epochs are kept, or None to keep none.
        resume: Continue from what an earlier process left in `checkpoints`; bit-identical on the CPU.
        recorder: Told the metrics of each epoch.
        display: Shows progress.
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
        seed: int = 0,
        checkpoints: Path | None = None,
        resume: bool = False,
        recorder: Recorder | None = None,
        display: Display | None = None,
        channels_last: bool | None = None,
    ) -> None:
        try:
            self.fabric = Fabric(
                accelerator="gpu" if device == "cuda" else device,
                devices=1,
                strategy=strategy,
                precision=precision,  # type: ignore[arg-type]
            )
            self.fabric.launch()
        except Exception as error:  # Fabric raises ValueError, RuntimeError and its own misconfiguration error
            raise ConfigError(
                f"cannot compute with device {device!r}, precision {precision!r}, strategy {strategy!r}: {error} "
                "`sanitize doctor` shows what this machine has."
            ) from error
        self._channels_last = self.fabric.device.type == "cuda" if channels_last is None else channels_last
        self.seed = seed
        self.settings = {"device": str(self.fabric.device), "precision": precision, "strategy": strategy}
        self.recorder = recorder or NullRecorder()
        self.display = display or Display(quiet=True)
        self._checkpoints = Checkpoints(checkpoints, resume=resume) if checkpoints else None

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
            TrainingError: A loss term or a weight is not finite.
        """
        per_epoch = max(1, images // batch_size if drop_last else math.ceil(images / batch_size))
        total = min(epochs * per_epoch, max_steps or epochs * per_epoch)
        if self._channels_last:
            network.to(memory_format=torch.channels_last)  # convolutions then work, and keep activations, in it
        made = optimizer([parameter for parameter in network.parameters() if parameter.requires_grad])
        schedule = scheduler(made, total) if scheduler else None
        module, made = self.fabric.setup(network, made)
        module.train(train_mode)
        generator = self.generator(stage)
        history = History()
        saved = self._checkpoints.load(stage) if self._checkpoints else None
        if saved is not None:
            history = _restore(saved, network, made, schedule, generator)
            if companion is not None:
                companion.load_state_dict(saved["companion"])
        # Dropout and stochastic depth know only torch's global generators: theirs is seeded anew for each epoch.
        with (
            torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []),
            self.recorder.stage(stage),
            self.display.stage(stage, total - history.steps) as progress,
        ):
            for number, values in enumerate(history.epochs):
                self.recorder.metrics(stage, values, number)
            while history.steps < total and history.stopped is None:
                started, count = time.perf_counter(), 0
                sums: dict[str, Tensor | float] = {}
                prepared: dict[str, float] = {}
                if companion is not None:
                    module.eval()
                    prepared = companion.before_epoch(network, generator)
                    module.train(train_mode)
                torch.manual_seed(self.generator(f"{stage}/layers/{len(history.epochs)}").initial_seed())
                for indices in batches(images, batch_size, generator, drop_last=drop_last and images >= batch_size):
                    made.zero_grad(set_to_none=True)
                    terms = loss(module, indices, generator)
                    self.fabric.backward(terms["loss"])
                    if clip_norm is not None:
                        # What is not finite is told at the end of the epoch or stage; fp16 skips such a step.
                        self.fabric.clip_gradients(module, made, max_norm=clip_norm, error_if_nonfinite=False)
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
                _require_finite(values, stage, len(history.epochs))
                history.seconds += time.perf_counter() - started
                if watch is not None:
                    with torch.no_grad():
                        module.eval()
                        extra, history.stopped = watch(network)
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
        pixels: Callable[[Tensor], Tensor],
        count: int,
        *,
        batch_size: int = 512,
    ) -> Tensor:
        """Outputs of a network in eval mode for images 0 .. count-1.

        Args:
            network: Moved to the device of the run.
            pixels: Indices (B,) -> images (B, 3, H, W) in [0, 1].
            count: How many images.
            batch_size: Images at a time.

        Returns:
            (count, D) float32 on the CPU.
        """
        network = network.to(self.device).eval()
        outputs = []
        for indices in batches(count, batch_size, None):
            with self.fabric.autocast():
                outputs.append(network(pixels(indices)).float().cpu())
        return torch.cat(outputs)


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
