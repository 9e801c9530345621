"""The trigger SPEC, a YAML mapping with files beside it: how it is read, checked and written.

Keys of every kind are `kind`, `name` and `target`; the others belong to the kind.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from sanitize.data.decoding import read_picture
from sanitize.data.triggers.base import Trigger
from sanitize.errors import ConfigError, DataError
from sanitize.types import did_you_mean

FREQUENCY_KEYS = ("kind", "name", "magnitude", "window", "target")
GENERATED_KEYS = ("kind", "name", "weights", "secret", "amplitude", "target")
WARP_KEYS = ("kind", "name", "grid_size", "strength", "seed", "target")
PATCH_KEYS = ("kind", "name", "image", "pattern", "mask", "mode", "alpha", "size", "position", "box", "target")


def make(values: Mapping[str, Any], folder: Path) -> Trigger:
    """The trigger that the values of a SPEC describe.

    Raises:
        ConfigError: The kind or a key is unknown, or a value is unfit.
    """
    kind = values.get("kind", "patch")
    if kind not in _KINDS:
        raise ConfigError(f"unknown kind {kind!r} of trigger. {did_you_mean(str(kind), _KINDS)}")
    return _KINDS[kind](values, folder)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a SPEC file, named after the file (or its folder, when it is called trigger.yaml).

    Raises:
        ConfigError: The file cannot be read, or is no mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"the trigger {path} cannot be read: {' '.join(str(error).split())}.") from error
    if not isinstance(values, Mapping):
        raise ConfigError(f"the trigger {path} must be a mapping with keys such as kind, name and target.")
    return {"name": path.resolve().parent.name if path.stem == "trigger" else path.stem, **values}


def _make_patch(values: Mapping[str, Any], folder: Path) -> Trigger:
    """A patch.

    Keys: ``image`` (a picture file) or ``pattern`` (rows of pixels, each [red, green, blue] or one grey value, in
    [0, 1]; or ``{height, width, color}`` for a plain patch, or ``{height, width, seed}`` for uniform noise); optionally
    ``mask`` (a picture file, or rows of values), ``mode``, ``alpha``, ``size`` (pixels of the shorter side, or [height,
    width]; bilinear with antialias), ``position``, ``box`` ([low, high], of random positions), ``target``, ``name``.
    """
    from sanitize.data.triggers.patch import PatchTrigger

    name = str(values.get("name", "trigger"))
    _check_keys(values, PATCH_KEYS, name)
    if (values.get("image") is None) == (values.get("pattern") is None):
        raise ConfigError(f"trigger {name} needs either `image` (a picture file) or `pattern` (rows of pixels).")
    transparency: Tensor | None = None
    if values.get("image") is not None:
        patch, transparency = _picture(values["image"], folder, f"image of trigger {name}")
    else:
        patch = _pattern(values["pattern"], f"pattern of trigger {name}")
    mask = transparency
    if values.get("mask") is not None:
        what = f"mask of trigger {name}"
        given = values["mask"]
        colour = _picture(given, folder, what)[0] if isinstance(given, str) else _pattern(given, what)
        mask = colour.mean(dim=0, keepdim=True)
    if values.get("size") is not None:
        patch = _resize(patch, values["size"], name)
        mask = None if mask is None else _resize(mask, values["size"], name)
    arguments: dict[str, Any] = {"name": name, "patch": patch, "mask": mask}
    for key in ("mode", "alpha", "position", "box", "target"):
        if values.get(key) is not None:
            arguments[key] = tuple(values[key]) if isinstance(values[key], list) else values[key]
    return PatchTrigger(**arguments)


def _make_frequency(values: Mapping[str, Any], folder: Path) -> Trigger:
    """Raised DCT coefficients. Keys: ``magnitude``, ``window``, ``target``, ``name``."""
    from sanitize.data.triggers.frequency import FrequencyTrigger

    return FrequencyTrigger(**_arguments(values, FREQUENCY_KEYS))


def _make_warp(values: Mapping[str, Any], folder: Path) -> Trigger:
    """A bent image. Keys: ``grid_size``, ``strength``, ``seed``, ``target``, ``name``."""
    from sanitize.data.triggers.warp import WarpTrigger

    return WarpTrigger(**_arguments(values, WARP_KEYS))


def _make_generated(values: Mapping[str, Any], folder: Path) -> Trigger:
    """A residual for each image. Keys: ``weights`` (a file), ``secret`` (bits), ``amplitude``, ``target``, ``name``."""
    from sanitize.data.triggers.generated import LONGEST_SECRET, GeneratedTrigger, read_encoder

    arguments = _arguments(values, GENERATED_KEYS)
    secret, file = arguments.pop("secret", None), arguments.pop("weights", None)
    if not isinstance(file, str):
        raise ConfigError(f"trigger {arguments['name']} needs `weights`, a safetensors file beside the YAML file.")
    if not isinstance(secret, str) or not secret or not set(secret) <= {"0", "1"} or len(secret) > LONGEST_SECRET:
        raise ConfigError(
            f"trigger {arguments['name']}: secret must be up to {LONGEST_SECRET} bits in quotes, got {secret!r}."
        )
    encoder = read_encoder(folder / file, len(secret))
    return GeneratedTrigger(encoder, torch.tensor([int(bit) for bit in secret]), **arguments)


def _arguments(values: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    name = str(values.get("name", "trigger"))
    _check_keys(values, keys, name)
    return {"name": name} | {
        key: value for key, value in values.items() if key not in ("kind", "name") and value is not None
    }


def _check_keys(values: Mapping[str, Any], keys: tuple[str, ...], name: str) -> None:
    for key in values:
        if key not in keys:
            raise ConfigError(f"unknown key {key!r} in trigger {name}. {did_you_mean(str(key), keys)}")


def write_patch(folder: Path, *, patch: Tensor, mask: Tensor | None, values: dict[str, Any]) -> Path:
    """Write trigger.yaml and its pictures; see `PatchTrigger.save`."""
    folder.mkdir(parents=True, exist_ok=True)
    values = dict(values)
    if bool((patch < 0).any()):
        values["pattern"] = patch.permute(1, 2, 0).tolist()
    else:
        values["image"] = _write(folder / "trigger.png", _png(patch)).name
    if mask is not None:
        values["mask"] = _write(folder / "mask.png", _png(mask)).name
    return write_values(folder, {key: values.get(key) for key in PATCH_KEYS})


def write_values(folder: Path, values: Mapping[str, Any]) -> Path:
    """Write trigger.yaml, without the values that are None; a SPEC with files beside it gets them first."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {key: value for key, value in values.items() if value is not None}
    return _write(folder / "trigger.yaml", yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode())


def _picture(value: Any, folder: Path, what: str) -> tuple[Tensor, Tensor | None]:
    """RGB (3, h, w) and opacity (1, h, w) in [0, 1]; no opacity where the picture has no transparency."""
    if not isinstance(value, str):
        raise ConfigError(f"{what} must be a file name, got {value!r}.")
    path = folder / value
    if not path.is_file():
        raise ConfigError(f"{what}: there is no file {path}. Names are relative to the YAML file.")
    try:
        colour = read_picture(path).float() / 255
        with Image.open(path) as picture:
            if not picture.has_transparency_data:
                return colour, None
            return colour, transforms.pil_to_tensor(picture.convert("RGBA").getchannel("A")).float() / 255
    except DataError as error:
        raise ConfigError(f"{what}: {error}") from error


def _pattern(value: Any, what: str) -> Tensor:
    try:
        if isinstance(value, Mapping):
            return _shorthand(value)
        pattern = torch.tensor(value, dtype=torch.float32)
    except (TypeError, ValueError, KeyError, RuntimeError, OverflowError) as error:
        raise ConfigError(
            f"{what} must be rows of pixels in [0, 1], each [red, green, blue] or one grey value, or "
            f"{{height, width, color}} or {{height, width, seed}}: {error}."
        ) from error
    if pattern.ndim == 2:
        pattern = pattern[..., None].expand(-1, -1, 3)
    if pattern.ndim != 3 or pattern.shape[2] != 3 or not pattern.numel():
        raise ConfigError(f"{what} must be rows of pixels, each [red, green, blue] or one grey value.")
    return pattern.permute(2, 0, 1).contiguous()


def _shorthand(value: Mapping[str, Any]) -> Tensor:
    """A plain patch (`color`) or uniform noise (`seed`)."""
    shape = (int(value["height"]), int(value["width"]))
    if min(shape) < 1 or max(shape) > 4096:
        raise ValueError("height and width must be from 1 to 4096 pixels")
    if value.keys() == {"height", "width", "seed"}:
        return torch.rand((3, *shape), generator=torch.Generator().manual_seed(int(value["seed"])))
    if value.keys() == {"height", "width", "color"}:
        colour = torch.tensor(value["color"], dtype=torch.float32)
        if colour.shape not in ((), (3,)):
            raise ValueError("color must be [red, green, blue] or one grey value")
        return colour.reshape(-1, 1, 1).expand(3, *shape).clone()
    raise ValueError(f"its keys are {', '.join(map(str, value))}")


def _resize(values: Tensor, size: Any, name: str) -> Tensor:
    shape = [size] if not isinstance(size, list | tuple) else list(size)
    if len(shape) > 2 or not all(isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= 4096 for n in shape):
        raise ConfigError(
            f"size of trigger {name} must be pixels of its shorter side or [height, width], got {size!r}."
        )
    resized: Tensor = transforms.resize(values, shape, interpolation=InterpolationMode.BILINEAR, antialias=True)
    return resized.clamp(-1, 1)


def _png(values: Tensor) -> bytes:
    stream = io.BytesIO()
    transforms.to_pil_image((values * 255).round().to(torch.uint8)).save(stream, format="PNG")
    return stream.getvalue()


def _write(path: Path, data: bytes) -> Path:
    """Write in one step: a reader sees the old file or the new one."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        return Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


_KINDS: dict[str, Callable[[Mapping[str, Any], Path], Trigger]] = {
    "patch": _make_patch,
    "frequency": _make_frequency,
    "warp": _make_warp,
    "generated": _make_generated,
}
