"""What a result depends on besides its inputs: versions, hardware, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

DISTRIBUTION = "model-sanitizer"
_PACKAGES = ("torch", "torchvision", "mlflow", "lightly", "pytorch-lightning", "scikit-learn", "onnx", "numpy")


def tool() -> dict[str, Any]:
    """Name, version and commit of this program; the commit is None outside a checkout."""
    return {"name": "sanitize", "version": package_version(DISTRIBUTION), "commit": _commit()}


def environment() -> dict[str, Any]:
    """Versions and hardware, for the report."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: package_version(name) for name in _PACKAGES},
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def package_version(name: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
