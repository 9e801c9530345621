"""The work folder as files of at most 15 MiB, for machines from which only small files come back."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

SHARD_BYTES = 15 * 1024 * 1024


def pack(work: Path, folder: Path, *, half: bool = False) -> list[Path]:
    """Write results, networks and checkpoints as numbered shards; the MLflow store stays behind.

    Args:
        work: Work folder of a study.
        folder: Gets the shards; old ones are removed.
        half: Floating-point tensors of checkpoints as fp16: half the size; numbers after resuming differ a little.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("shard-*"):
        old.unlink()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz", compresslevel=1) as tar:
        for path in sorted(work.rglob("*")):
            if path.is_dir() or path.name.startswith("mlflow.db"):
                continue
            data = _halved(path) if half and path.suffix == ".ckpt" else path.read_bytes()
            member = tarfile.TarInfo(str(path.relative_to(work)))
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    written = []
    for number, chunk in enumerate(_chunks(archive.getvalue())):
        shard = folder / f"shard-{number:03d}"
        shard.write_bytes(chunk)
        written.append(shard)
    return written


def unpack(folder: Path, work: Path) -> None:
    """Put the shards together again."""
    archive = io.BytesIO(b"".join(path.read_bytes() for path in sorted(folder.glob("shard-*"))))
    work.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=archive, mode="r:gz") as tar:
        tar.extractall(work, filter="data")


def _chunks(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), SHARD_BYTES):
        yield data[start : start + SHARD_BYTES]


def _halved(path: Path) -> bytes:
    stream = io.BytesIO()
    torch.save(_map(torch.load(path, map_location="cpu", weights_only=True)), stream)
    return stream.getvalue()


def _map(value: Any) -> Any:
    """Tensors in nested dicts and lists as fp16; `load_state_dict` casts them back."""
    if isinstance(value, torch.Tensor):
        return value.half() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _map(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_map(item) for item in value]
    return value
