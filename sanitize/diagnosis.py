"""What `sanitize doctor` looks at; each check says what was seen, and what to do about a fault."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import metadata, requires

from packaging.requirements import Requirement

from sanitize.environment import DISTRIBUTION, package_version
from sanitize.errors import SanitizeError

_LEAST_FREE = 5 * 2**30  # bytes


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Args:
        name: What it is.
        ok: Whether the tool works with it.
        seen: What was found.
        remedy: What to do where it is not ok, or weak.
        weak: Whether the tool works, but less well than it could.
    """

    name: str
    ok: bool
    seen: str
    remedy: str = ""
    weak: bool = False

    @property
    def status(self) -> str:
        """``ok``, ``weak`` or ``fault``."""
        if not self.ok:
            return "fault"
        return "weak" if self.weak else "ok"


def diagnose(*, tracking_uri: str | None = None, device: str = "auto") -> list[Check]:
    """All checks; none of them raises.

    Args:
        tracking_uri: MLflow store to contact.
        device: The device that is going to be asked for.
    """
    checks: dict[str, Callable[[], Check]] = {
        "Python": _python,
        "packages": _packages,
        "extras": _extras,
        "torch": _torch,
        "torchvision": _vision,
        "ONNX Runtime": _onnxruntime,
        "device": lambda: _device(device),
        "MLflow store": lambda: _store(tracking_uri),
        "sandbox for suspects": _sandbox,
        "free disk here": _disk,
    }
    return [_done(name, check) for name, check in checks.items()]


def _done(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:  # a package that does not work breaks the checks that need it
        return Check(name, False, f"cannot be checked: {type(error).__name__}: {error}", "mend the other faults first")


def _python() -> Check:
    return Check("Python", sys.version_info >= (3, 11), sys.version.split()[0], "use Python 3.11 or newer")


def _packages() -> Check:
    missing = _unmet("")
    return Check(
        "packages",
        not missing,
        f"missing or too old: {', '.join(missing)}" if missing else "all that are needed",
        f"pip install {' '.join(map(repr, missing))}",
    )


def _extras() -> Check:
    """Extras are for those who work on the tool: their absence is no fault."""
    missing = {extra: len(_unmet(extra)) for extra in metadata(DISTRIBUTION).get_all("Provides-Extra") or ()}
    seen = ", ".join(f"{extra}: {f'{count} packages missing' if count else 'yes'}" for extra, count in missing.items())
    return Check("extras", True, f"{seen} (for tests and documentation only)")


def _unmet(extra: str) -> list[str]:
    """Requirements of this program, or of an extra alone, that the environment does not meet."""
    found = []
    for text in requires(DISTRIBUTION) or ():
        requirement = Requirement(text)
        marker = requirement.marker
        wanted = marker is None or marker.evaluate({"extra": extra})
        if extra and (marker is None or marker.evaluate({"extra": ""})):
            wanted = False  # needed without the extra as well
        version = package_version(requirement.name)
        if wanted and (version is None or not requirement.specifier.contains(version, prereleases=True)):
            found.append(f"{requirement.name}{requirement.specifier}")
    return found


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

    if bubblewrap():
        return Check("sandbox for suspects", True, "bubblewrap")
    seen, remedy = "child process with resource limits only", "install bubblewrap (Linux): files are then read without"
    remedy += " network and file system"
    if shutil.which("bwrap"):
        seen += "; bubblewrap is there, and may not make namespaces"
        remedy = "allow unprivileged user namespaces to this user or container"
    return Check("sandbox for suspects", True, seen, remedy, weak=True)


def _disk() -> Check:
    free = shutil.disk_usage(".").free
    return Check("free disk here", free >= _LEAST_FREE, f"{free / 2**30:.0f} GiB", "5 GiB or more make sense")
