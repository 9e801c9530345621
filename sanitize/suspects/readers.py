"""From an untrusted file or folder to plain tensors, with findings on what loading it the usual way would have run."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sanitize.errors import ArtifactError, UnsafeArtifactError
from sanitize.suspects.extract.command import TENSORS
from sanitize.suspects.extract.formats import REFUSED
from sanitize.suspects.globals import BY_VALUE, trust
from sanitize.suspects.isolation import run_extraction
from sanitize.suspects.mlmodel import inspect_folder
from sanitize.suspects.quarantine import MAX_BYTES, admit, digest
from sanitize.types import Finding, Severity

SECONDS = 30
"""CPU time of the reading process, and as much again for each gigabyte (one takes about two seconds)."""
_FLOATS = (torch.float16, torch.bfloat16, torch.float64)
_KEPT = (torch.float32, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


@dataclass(frozen=True)
class Tensors:
    """The weights in an artifact, as plain tensors.

    Args:
        state: State-dict key -> tensor on the CPU; floats are float32.
        format: ``safetensors``, ``state-dict``, ``pickled-module`` or ``pt2``.
        findings: What was observed in the artifact.
        sha256: Digest of the file, or of all files in the folder (see `sanitize.suspects.quarantine.digest`).
    """

    state: dict[str, Tensor]
    format: str
    findings: list[Finding] = field(default_factory=list)
    sha256: str = ""


def read_tensors(path: Path, *, allow_stubbed: bool = False) -> Tensors:
    """Read the weights of a suspect without executing anything that it holds or names.

    Pickles are followed opcode by opcode in a child process (see `sanitize.suspects.extract.machine`); names in them
    are compared with a list of ordinary ones and never looked up.

    Args:
        path: File, or folder such as an MLflow model (downloaded into quarantine).
        allow_stubbed: Also read artifacts that name classes, functions or modules which are not known to be ordinary;
            they stay inert, and are reported as findings. Names that are plainly dangerous are refused all the same.

    Raises:
        ArtifactError: It is missing, corrupt, in a format that is not read, or holds NaN or infinite weights.
        UnsafeArtifactError: Loading it the usual way would run code that its author chose; the message names it.
    """
    path = Path(path)
    files = admit(path)
    about = inspect_folder(path, files) if path.is_dir() else []
    size = sum(file.stat().st_size for file in files)
    request = {
        "root": str(path.resolve()),
        "files": [file.relative_to(path).as_posix() for file in files] if path.is_dir() else [""],
        "max_bytes": MAX_BYTES,
        "max_output": 2 * size + (64 << 20),
        "seconds": SECONDS * (1 + (size >> 30)),
    }
    with tempfile.TemporaryDirectory(prefix="sanitize-") as folder:
        found = run_extraction(request, Path(folder))
        findings = about + _judge(found, path, about, allow_stubbed)
        if "error" in found:
            raise (UnsafeArtifactError if found.get("hostile") else ArtifactError)(f"{path}: {found['error']}.")
        source = path / found["file"] if found["file"] else path
        if found["format"] == "safetensors":
            state = _load_safetensors(source)
        else:
            storages = _load_safetensors(Path(folder, TENSORS))
            budget = 4 * size + (64 << 20)
            state = _views(storages, found["tensors"], path, budget)
    return Tensors(_checked(state, path), found["format"], findings, digest(path))


def _judge(found: dict[str, Any], path: Path, about: list[Finding], allow_stubbed: bool) -> list[Finding]:
    """Findings from the names in the pickles; raises where the artifact is refused for them."""
    names = {name: where for where, listed in found.get("globals", {}).items() for name in listed}
    by_trust = {kind: sorted(n for n in names if trust(n) == kind) for kind in ("dangerous", "unknown")}
    broken = found.get("broken", {})
    if by_trust["dangerous"]:
        listed = ", ".join(f"{name} (in {names[name]})" for name in by_trust["dangerous"][:6])
        raise UnsafeArtifactError(
            f"{path} is refused: loading it the usual way would call {listed}. Nothing of it was executed. "
            "Ask its maker for safetensors, and treat the file as an attack."
        )
    reasons = [finding.message.rstrip(".") for finding in about if finding.severity is Severity.ERROR]
    if by_trust["unknown"]:
        listed = ", ".join(f"{name} (in {names[name]})" for name in by_trust["unknown"][:6])
        more = f" and {len(by_trust['unknown']) - 6} more" if len(by_trust["unknown"]) > 6 else ""
        reasons.append(f"its pickles name {listed}{more}, not known to be ordinary in a model")
    reasons += [f"the pickle {where} could only be followed in part: {why}" for where, why in broken.items()]
    if found.get("format") in REFUSED:  # no option would read it, so the format is what matters
        reasons = []
    if reasons and not allow_stubbed:
        raise UnsafeArtifactError(
            f"{path} is refused: {'; '.join(reasons)}. Nothing of it was executed. "
            "If you expect this, --allow-stubbed (allow_stubbed=True) reads the weights alone and keeps it inert."
        )
    return list(_findings(found, names, by_trust["unknown"]))


def _findings(found: dict[str, Any], names: dict[str, str], unknown: list[str]) -> list[Finding]:
    findings = []

    def add(rule: str, severity: Severity, message: str, **evidence: Any) -> None:
        findings.append(Finding(rule=rule, severity=severity, message=message, evidence=evidence))

    by_value = [name for name in unknown if BY_VALUE.fullmatch(name)]
    others = [name for name in unknown if name not in by_value]
    if by_value:
        message = "It carries byte code: a class or function pickled by value. It was left inert."
        add(
            "artifact-code-by-value",
            Severity.WARNING,
            message,
            names=by_value,
            files=sorted({names[n] for n in by_value}),
        )
    if others:
        message = f"Its pickles name {', '.join(others[:6])}, not known to be ordinary in a model; left inert."
        add(
            "artifact-unknown-global",
            Severity.WARNING,
            message,
            names=others[:100],
            files=sorted({names[n] for n in others}),
        )
    for where, why in found.get("broken", {}).items():
        add("artifact-broken-pickle", Severity.WARNING, f"{where} could only be followed in part: {why}.", file=where)
    for place, name, what in found.get("hidden", []):
        hooks = "hooks" in name
        if hooks or hasattr(nn.Module, name):
            where = place or "the model"
            message = (
                f"{where} carries {name} = {what} in its instance, which {'hooks into' if hooks else 'replaces'} it."
            )
            add("artifact-hidden-callable", Severity.WARNING, message, module=place, attribute=name, value=what)
    for rule, message in found.get("notes", []):
        add(rule, Severity.WARNING, f"{message}; left inert.")
    if found.get("opaque"):
        message = f"Compressed files were not looked into: {', '.join(found['opaque'][:5])}."
        add("artifact-opaque-file", Severity.WARNING, message, files=found["opaque"][:50])
    if found.get("beside"):
        message = f"Other model files lie beside the weights and were not examined: {', '.join(found['beside'][:5])}."
        graphs = all(name.endswith(".onnx") for name in found["beside"])
        add("artifact-not-examined", Severity.NOTE if graphs else Severity.WARNING, message, files=found["beside"][:50])
    if found.get("skipped"):
        message = f"Not part of the network, left out: {', '.join(found['skipped'][:8])}."
        add("artifact-entries-skipped", Severity.NOTE, message, entries=found["skipped"][:50])
    if found.get("missing"):
        message = f"The reading process ran without: {', '.join(found['missing'])} (not available on this system)."
        add("isolation-incomplete", Severity.NOTE, message, missing=found["missing"])
    return findings


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise ArtifactError(
            f"{path} is not a readable safetensors file ({error}). Was it copied completely?"
        ) from error


def _views(storages: dict[str, Tensor], views: dict[str, Any], path: Path, budget: int) -> dict[str, Tensor]:
    # The child checked this too; what it says is not believed.
    state, total = {}, 0
    try:
        for key, view in views.items():
            storage, shape, stride = storages[view["storage"]], tuple(view["shape"]), tuple(view["stride"])
            total += math.prod(shape) * storage.element_size()
            if total > budget:
                raise ValueError("more elements than bytes in the artifact")
            state[key] = torch.as_strided(storage, shape, stride, view["offset"]).clone(
                memory_format=torch.contiguous_format
            )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{path} describes tensors that do not fit its data ({str(error)[:200]}).") from error
    return state


def _checked(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    if not state:
        raise ArtifactError(f"{path} holds no tensors.")
    checked = {}
    for key, tensor in state.items():
        if tensor.dtype not in _FLOATS + _KEPT:
            raise ArtifactError(
                f"{path}: {key} has the dtype {tensor.dtype}; read are whole and floating numbers (16 to 64 bits)."
            )
        checked[key] = tensor.float() if tensor.dtype in _FLOATS else tensor
    bad = [key for key, tensor in checked.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise ArtifactError(
            f"{path} has NaN or infinite weights in {', '.join(bad[:5])}{more}. Ask for an intact copy."
        )
    return checked
