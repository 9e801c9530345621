"""Checkpoints at epoch ends: written whole or not at all, read without unpickling code."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from sanitize.errors import WorkdirError


class Checkpoints:
    """One file a stage, in one folder.

    Args:
        folder: Created when the first checkpoint is written.
        resume: Whether what an earlier process left is read; otherwise it is ignored and overwritten.
    """

    def __init__(self, folder: Path, *, resume: bool = False) -> None:
        self.folder = folder
        self.resume = resume

    def load(self, stage: str) -> dict[str, Any] | None:
        """The last state of a stage, on the CPU, or None.

        Raises:
            WorkdirError: The file cannot be read back.
        """
        path = self._path(stage)
        if not self.resume or not path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many types for a damaged file
            raise WorkdirError(
                f"the checkpoint {path} cannot be read ({type(error).__name__}: {error}). "
                "Delete the work directory and start without --resume."
            ) from error
        return state

    def save(self, stage: str, state: dict[str, Any]) -> None:
        """Replace the state of a stage; a crash at any moment leaves the old or the new one.

        Raises:
            WorkdirError: The disk is full or the folder is not writable.
        """
        partial: Path | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".partial", delete=False) as file:
                partial = Path(file.name)
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._path(stage))
        except (OSError, RuntimeError) as error:
            if partial is not None:
                partial.unlink(missing_ok=True)
            raise WorkdirError(
                f"cannot write a checkpoint into {self.folder} ({error}). Free some space or choose another --workdir."
            ) from error

    def _path(self, stage: str) -> Path:
        return self.folder / f"{stage}.ckpt"
