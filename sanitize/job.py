"""What purifications, trainings and searches of data have in common: where and how they compute."""

from __future__ import annotations

from pathlib import Path

from sanitize.training import Display, Engine


class Job:
    """Base of the jobs; each sets these in its constructor, and documents them."""

    device: str
    precision: str
    strategy: str
    devices: int
    num_nodes: int
    seed: int
    resume: bool
    display: Display

    def _engine(self, folder: Path) -> Engine:
        """The engine of the job in a work directory, where its checkpoints are."""
        return Engine(
            device=self.device,
            precision=self.precision,
            strategy=self.strategy,
            devices=self.devices,
            num_nodes=self.num_nodes,
            seed=self.seed,
            checkpoints=folder.absolute() / "checkpoints",
            resume=self.resume,
            display=self.display,
        )
