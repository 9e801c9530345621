"""The cleaned model as two files that need no pickle: weights, and a small JSON that rebuilds the network."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, StringConstraints, ValidationError
from torch import Tensor

from sanitize.errors import ArchitectureError, ArtifactError, ConfigError, ExportError
from sanitize.export.atomic import replacing
from sanitize.suspects.networks import Network, wrap
from sanitize.types import ModelKind, ModelSpec

WEIGHTS_FILE = "model.safetensors"
SPEC_FILE = "sanitize.json"
FORMAT_VERSION = 1
_SPEC_LIMIT = 64 * 1024  # bytes; a real one has a few hundred
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Std = Annotated[PositiveFloat, Field(allow_inf_nan=False)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _NormalizationRecord(_Record):
    name: str
    mean: tuple[_Finite, _Finite, _Finite]
    std: tuple[_Std, _Std, _Std]


class _PackageRecord(_Record):
    """The content of `sanitize.json`; anything else in it is refused."""

    format_version: Literal[1]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    kind: ModelKind
    architecture: Annotated[str, StringConstraints(min_length=1, max_length=500)]
    normalization: _NormalizationRecord
    image_size: Annotated[int, Field(ge=1, le=4096)]  # a forged size must not cost all memory
    output_size: Annotated[int, Field(ge=1, le=1_000_000)]
    resize: str

    def spec(self) -> ModelSpec:
        return ModelSpec.from_dict(self.model_dump(exclude={"format_version", "sha256"}))


def write_package(network: Network, folder: Path) -> Path:
    """Write `model.safetensors` and `sanitize.json` into `folder`.

    The tensors carry the backbone's own names, so that they also load into a plain network of that architecture. The
    same weights give the same bytes. The JSON, which holds the digest of the weights, is written last.

    Args:
        network: Encoder or classifier; its weights are stored in the data type that they have.
        folder: Made when missing; an older package in it is replaced.

    Returns:
        `folder`.

    Raises:
        ExportError: A weight is NaN or infinite, or the file system refuses. No partial file is left.
    """
    state: dict[str, Tensor] = network.backbone.state_dict()
    weights = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()
    }
    _check_finite(weights, ExportError, f"the {network.spec.kind} to be written")
    content = safetensors.torch.save(weights, metadata={"format": "pt"})
    header = {"format_version": FORMAT_VERSION, "sha256": hashlib.sha256(content).hexdigest()}
    try:
        record = _PackageRecord.model_validate_json(json.dumps(header | network.spec.to_dict()))
    except ValidationError as error:
        raise ExportError(f"this model cannot be described by a package: {_problems(error)}.") from error
    # Both drafts are on the disk before either is renamed; killed in between, the old JSON refuses the new weights.
    with replacing(folder / SPEC_FILE) as spec_draft, replacing(folder / WEIGHTS_FILE) as weights_draft:
        spec_draft.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
        weights_draft.write_bytes(content)
    return folder


def read_package(folder: Path, *, architecture: str | None = None) -> Network:
    """Rebuild the network that `write_package` wrote, strictly, in eval mode on the CPU.

    Args:
        folder: Holds `model.safetensors` and `sanitize.json`.
        architecture: Used instead of the name in the package. Needed where the package names the defender's own
            ``file.py:function``: code is only ever imported when the caller names it.

    Raises:
        ArtifactError: A file is missing or corrupt, has unknown keys, or the weights differ from their recorded digest.
        ConfigError: The package needs code of the defender's and `architecture` was not given, or the name is unknown.
        ArchitectureError: Weights and architecture do not belong together.
    """
    from sanitize.suspects.architectures import build  # it lists torchvision's models: not for those who only write

    record = _read_record(folder / SPEC_FILE)
    content = _read(folder / WEIGHTS_FILE)
    found = hashlib.sha256(content).hexdigest()
    if found != record.sha256:
        raise ArtifactError(
            f"{folder / WEIGHTS_FILE} is not what was recorded: sha256 {found}, recorded {record.sha256}. "
            "It was damaged or exchanged: get it again from the registry."
        )
    try:
        weights = safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ArtifactError(f"{folder / WEIGHTS_FILE} is not a safetensors file: {error}.") from error
    _check_finite(weights, ArtifactError, str(folder / WEIGHTS_FILE))
    spec = record.spec()
    if architecture is not None:
        spec = replace(spec, architecture=architecture)
    elif not _PLAIN_NAME.fullmatch(spec.architecture):
        raise ConfigError(
            f"the package in {folder} was built from the code {spec.architecture!r}, and code that a package names is "
            "never imported. Pass your own: architecture='file.py:function'."
        )
    classes = spec.output_size if spec.kind == "classifier" else None
    built = build(spec.architecture, kind=spec.kind, image_size=spec.image_size, classes=classes)
    try:
        built.backbone.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise ArchitectureError(
            f"the weights in {folder} do not belong to {spec.architecture}: {' '.join(str(error).split())}"
        ) from error
    return wrap(built.backbone, spec)


def _check_finite(weights: dict[str, Tensor], kind: type[Exception], what: str) -> None:
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise kind(f"{what} has NaN or infinite values in {name!r}. It cannot be used.")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"could not read {path}: {error.strerror or error}. A package needs this file.") from error


def _read_record(path: Path) -> _PackageRecord:
    if path.is_file() and path.stat().st_size > _SPEC_LIMIT:
        raise ArtifactError(f"{path} has more than {_SPEC_LIMIT} bytes: it is not the JSON file of a package.")
    try:
        return _PackageRecord.model_validate_json(_read(path))
    except ValidationError as error:
        raise ArtifactError(f"{path} is not a package of format {FORMAT_VERSION}: {_problems(error)}.") from error


def _problems(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, item['loc'])) or 'file'}: {item['msg']}" for item in error.errors(include_input=False)
    )
