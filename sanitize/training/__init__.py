"""One training engine: device and precision, the loop, checkpoints, progress."""

from sanitize.training.checkpoints import Checkpoints
from sanitize.training.engine import Companion, Engine, History, Loss, Watch
from sanitize.training.processes import first_process, require_one_process, require_splittable, world
from sanitize.training.progress import Display
from sanitize.training.recorder import NullRecorder, Recorder

__all__ = [
    "Checkpoints",
    "Companion",
    "Display",
    "Engine",
    "History",
    "Loss",
    "NullRecorder",
    "Recorder",
    "Watch",
    "first_process",
    "require_one_process",
    "require_splittable",
    "world",
]
