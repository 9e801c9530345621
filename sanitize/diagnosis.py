"""What `sanitize doctor` looks at; each check says what was seen, and what to do about a fault."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass

from sanitize.environment import package_version
from sanitize.errors import SanitizeError

_LEAST_FREE = 5 * 2**30  # bytes


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    seen: str
    remedy: str = ""


def diagnose(*, tracking_uri: str | None = None, device: str = "auto") -> list[Check]:
    """All checks; none of them raises.

    Args:
        tracking_uri: MLflow store to contact.
        device: The device that is going to be asked for.
    """
    checks: list[Callable[[], Check]] = [
        _python,
        _torch,
        _vision,
        _onnxruntime,
        lambda: _device(device),
        lambda: _store(tracking_uri),
        _sandbox,
        _disk,
    ]
    return [check() for check in checks]


def _python() -> Check:
    return Check("Python", sys.version_info >= (3, 11), sys.version.split()[0], "use Python 3.11 or newer")


def _torch() -> Check:
    version = package_version("torch") or "missing"
    new_enough = version != "missing" and tuple(map(int, version.split("+")[0].split(".")[:2])) >= (2, 10)
    return Check("torch", new_enough, version, "pip install 'torch>=2.10' torchvision (older ones unpickle unsafely)")


def _vision() -> Check:
    remedy = "install torch and torchvision together from the same index"
    try:
        import torch
        import torchvision

        kept = torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    except Exception as error:  # a mismatch shows in many ways: ImportError, RuntimeError, OSError
        return Check("torchvision", False, f"{type(error).__name__}: {error}", remedy)
    return Check("torchvision", len(kept) == 1, str(package_version("torchvision")), remedy)


def _onnxruntime() -> Check:
    found = [name for name in ("onnxruntime", "onnxruntime-gpu") if package_version(name)]
    seen = ", ".join(f"{name} {package_version(name)}" for name in found) or "missing"
    remedy = "have exactly one: pip uninstall onnxruntime onnxruntime-gpu, then install one of them"
    return Check("ONNX Runtime", len(found) == 1, seen, remedy)


def _device(device: str) -> Check:
    import torch

    from sanitize.training import Engine

    try:
        chosen = Engine(device=device).device
    except SanitizeError as error:
        return Check("device", False, f"{device}: {error}", "check the driver, or use --device cpu")
    name = torch.cuda.get_device_name(0) if chosen.type == "cuda" else f"{torch.get_num_threads()} threads"
    return Check("device", True, f"{chosen} ({name})")


def _store(tracking_uri: str | None) -> Check:
    from sanitize.tracking import Store

    store = Store(tracking_uri)
    if not store.exists:
        return Check("MLflow store", True, f"{store.shown} (not made yet)")
    try:
        store.client.search_experiments(max_results=1)
    except SanitizeError as error:
        return Check("MLflow store", False, str(error), "start the server, or give --tracking-uri")
    return Check("MLflow store", True, store.shown)


def _sandbox() -> Check:
    from sanitize.suspects.isolation import bubblewrap

    seen = "bubblewrap" if bubblewrap() else "child process with resource limits only"
    return Check("sandbox for suspects", True, seen)


def _disk() -> Check:
    free = shutil.disk_usage(".").free
    return Check("free disk here", free >= _LEAST_FREE, f"{free / 2**30:.0f} GiB", "5 GiB or more make sense")
