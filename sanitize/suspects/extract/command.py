"""The child's work: limit itself, look into every file, extract the weights of one, and write both down."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

from .archives import ArchiveError, open_archive
from .contents import ContentsError
from .formats import READABLE, REFUSED, detect
from .records import MachineError
from .scan import Scan, scan_file
from .weights import Weights, read_pt2, read_torch_zip, write_storages

FOUND = "found.json"
TENSORS = "tensors.safetensors"
MEMORY = 2 << 30
"""Address space of the child in bytes: its interpreter, and the records of the largest pickle that is followed."""
SIDE_FORMATS = frozenset({"pickle", "onnx", "numpy", "zip", "compressed", "unknown"})
"""In a folder these are not taken for the weights while a file in another format is there."""


def main(request: str, output: str) -> int:
    """Serve one request.

    Args:
        request: JSON file: `root`, `files` (relative to it; [""] for a single file), `max_bytes`, `max_output`,
            `seconds`.
        output: Empty folder for `found.json` and, where weights were found, `tensors.safetensors`.
    """
    wanted = json.loads(Path(request).read_text())
    found: dict[str, Any] = {"missing": limit(wanted["max_output"], wanted["seconds"])}
    try:
        extract(Path(wanted["root"]), wanted["files"], wanted["max_bytes"], Path(output), found)
    except (ArchiveError, ContentsError, MachineError) as error:
        found["error"] = str(error)
        found["hostile"] = getattr(error, "hostile", False)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
        found["error"] = f"the archive is corrupt ({error})"
    except (MemoryError, RecursionError) as error:
        found["error"] = f"it takes more memory or nesting than is allowed ({type(error).__name__})"
        found["hostile"] = True
    Path(output, FOUND).write_text(json.dumps(found))
    return 0


def limit(max_output: int, seconds: int) -> list[str]:
    """Take resources away from this process before it sees any data.

    Returns:
        The protections that this system does not offer.
    """
    try:
        import resource
    except ImportError:
        return ["resource limits"]
    missing = []
    for name, value in {
        "RLIMIT_CORE": 0,
        "RLIMIT_CPU": seconds,
        "RLIMIT_FSIZE": max_output,
        "RLIMIT_AS": MEMORY,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_NPROC": 0,
    }.items():
        try:
            kind = getattr(resource, name)
            hard = resource.getrlimit(kind)[1]
            hard = 1 << 62 if hard == resource.RLIM_INFINITY else hard
            # Soft below hard: at the soft CPU limit comes SIGXCPU, which tells why; at the hard one only SIGKILL.
            spare = 5 if name == "RLIMIT_CPU" else 0
            resource.setrlimit(kind, (min(value, hard), min(value + spare, hard)))
        except (AttributeError, ValueError, OSError):
            missing.append(f"limit {name.removeprefix('RLIMIT_')}")
    return missing


def extract(root: Path, files: list[str], max_bytes: int, output: Path, found: dict[str, Any]) -> None:
    """Scan all files, then extract the weights; results are entered into `found` as they come."""
    scan = Scan()
    found |= {"globals": scan.globals, "broken": scan.broken, "opaque": scan.opaque}  # kept also when this fails later
    formats: dict[str, str] = {}
    for name in files:
        path = root / name if name else root
        scan_file(path, name or root.name, scan, max_bytes=max_bytes)
        formats[name] = detect(path, max_bytes=max_bytes)
    name = choose(formats)
    path = root / name if name else root
    found["file"], found["format"] = name, formats[name]
    found["beside"] = sorted(
        n for n, f in formats.items() if n != name and f in ("onnx", "pickle", "hdf5", "torchscript")
    )
    if formats[name] not in READABLE:
        raise ContentsError(f"{name or root.name} is {REFUSED[formats[name]]}")
    if formats[name] == "safetensors":
        return  # the parent reads it with the safetensors library, which executes nothing
    with open_archive(path, max_bytes=max_bytes) as archive:
        weights: Weights = (read_pt2 if formats[name] == "pt2" else read_torch_zip)(archive)
        found["format"] = weights.format
        found["hidden"] = weights.contents.hidden
        found["skipped"] = weights.contents.skipped
        found["notes"] = weights.notes
        size = path.stat().st_size
        found["tensors"] = write_storages(archive, weights, output / TENSORS, artifact_bytes=size)


def choose(formats: dict[str, str]) -> str:
    """The file with the weights, by content alone: the artifact has no say in it.

    Raises:
        ContentsError: No file, or several, could be it.
    """
    main_files = [name for name, kind in formats.items() if kind not in SIDE_FORMATS]
    named = [n for n, kind in formats.items() if kind in SIDE_FORMATS and kind in ("pickle", "onnx")]
    candidates = main_files or named or (list(formats) if len(formats) == 1 else [])
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise ContentsError("no weights in the folder: no safetensors, torch.save or torch.export file")
    listed = ", ".join(f"{name} ({formats[name]})" for name in candidates[:6])
    raise ContentsError(f"several files could be the weights: {listed}. Take in the one that you mean as a file")
