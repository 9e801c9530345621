"""Networks that many tests share, trained once and kept: what a test finds must not depend on the machine it runs on.

``python -m tests.trained`` trains all of them anew (minutes), and writes `networks.safetensors` in half precision and
the trigger of the backdoored encoder.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent
WEIGHTS = HERE / "networks.safetensors"
GROUPS = ("encoders", "classifiers", "references", "threat")


def unpack(group: str, folder: Path) -> Path:
    """Write the checkpoints of a group, `NAME.pth` each, and the trigger of the encoders beside them."""
    folder.mkdir()
    networks: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in load_file(WEIGHTS).items():
        of, name, parameter = key.split("/")
        if of == group:
            networks.setdefault(name, {})[parameter] = value.float() if value.is_floating_point() else value
    for name, state in networks.items():
        torch.save({"state_dict": state}, folder / f"{name}.pth")
    if group == "encoders":
        shutil.copytree(HERE / "trigger", folder / "trigger")
    return folder
