"""Train all shared networks anew."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file

from tests.classifiers import train_classifiers
from tests.encoders import train_encoders, train_references
from tests.threat import train_threat
from tests.trained import GROUPS, HERE, WEIGHTS

TRAININGS = dict(zip(GROUPS, (train_encoders, train_classifiers, train_references, train_threat), strict=True))


def keep(folder: Path) -> None:
    """Write what lies in `folder/GROUP/NAME.pth` into one file."""
    kept = {}
    for group in GROUPS:
        for file in sorted((folder / group).glob("*.pth")):
            for name, value in torch.load(file, weights_only=True)["state_dict"].items():
                kept[f"{group}/{file.stem}/{name}"] = value.half() if value.is_floating_point() else value
    save_file(kept, WEIGHTS)
    shutil.copytree(folder / "encoders" / "trigger", HERE / "trigger", dirs_exist_ok=True)


if __name__ == "__main__":
    with TemporaryDirectory() as temporary:
        for group, train in TRAININGS.items():
            (Path(temporary) / group).mkdir()
            train(Path(temporary) / group)
        keep(Path(temporary))
