"""The networks that a suspect's weights are put into: built-in, torchvision's, or the defender's own."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from sanitize.errors import ArchitectureError, ConfigError
from sanitize.suspects.attention import with_attention
from sanitize.suspects.cifar import CifarResNet, SmallCNN
from sanitize.suspects.heads import AUXILIARY, find_head, remove_head
from sanitize.suspects.senet import SEBlock
from sanitize.suspects.vgg import CifarVGG
from sanitize.suspects.vit import BASE, SMALL, vision_transformer
from sanitize.types import ModelKind, did_you_mean


def _attentive(name: str, stages: str, classes: int, size: int) -> nn.Module:
    return with_attention(BUILT_IN[name](classes, size), [int(stage) for stage in stages])


BUILT_IN: dict[str, Callable[[int, int], nn.Module]] = {
    "resnet18-cifar": lambda classes, size: CifarResNet(18, classes),
    "resnet34-cifar": lambda classes, size: CifarResNet(34, classes),
    "resnet18-narrow": lambda classes, size: CifarResNet(18, classes, width=16),
    "senet18-cifar": lambda classes, size: CifarResNet(18, classes, block=SEBlock),
    "senet34-cifar": lambda classes, size: CifarResNet(34, classes, block=SEBlock),
    "vgg11-cifar": lambda classes, size: CifarVGG(11, classes),
    "vgg16-cifar": lambda classes, size: CifarVGG(16, classes),
    "vit-small": lambda classes, size: vision_transformer(SMALL, classes, size),
    "vit-base": lambda classes, size: vision_transformer(BASE, classes, size),
    "small-cnn": lambda classes, size: SmallCNN(classes),
}
"""Name -> function of the number of classes and the image size in pixels."""

ATTENTION = {"resnet18-cifar": "234", "resnet34-cifar": "234", "resnet18-narrow": "34", "small-cnn": "34"}
"""Networks that there are with attention, and the stages that have it where none are named."""

BUILT_IN |= {f"{name}-attention": partial(_attentive, name, stages) for name, stages in ATTENTION.items()}


@dataclass(frozen=True)
class Architecture:
    """A freshly initialised network, and where its head is.

    Args:
        backbone: Encoder: images (N, 3, H, W) to features (N, D); classifier: to logits (N, C).
        output_size: D or C.
        head_prefixes: Key prefixes of the head (removed from an encoder) and of training-only heads.
        head: Dotted name of the layer that gives the logits, or None where the network has none.
    """

    backbone: nn.Module
    output_size: int
    head_prefixes: tuple[str, ...]
    head: str | None = None


def architecture_names() -> list[str]:
    """The built-in names; torchvision's classification models and ``file.py:function`` are accepted beside them.

    Where a name ends in ``-attention``, the stages that have it may follow: ``resnet18-cifar-attention-34``.

    Example:
        >>> architecture_names()[:3]
        ['resnet18-cifar', 'resnet34-cifar', 'resnet18-narrow']
    """
    return list(BUILT_IN)


def build(name: str, *, kind: ModelKind, image_size: int, classes: int | None = None) -> Architecture:
    """Build a network with random weights; an encoder comes without its head.

    Args:
        name: Built-in name, torchvision model name, or ``file.py:function`` of the *defender*, which is imported.
        kind: ``encoder`` or ``classifier``.
        image_size: Height and width in pixels.
        classes: Number of classes of a classifier; the defender's own function decides that itself.

    Raises:
        ConfigError: The name, the file or the function does not exist, or the arguments do not fit it.
        ArchitectureError: The network has no feature layer, or does not take such images.

    Example:
        >>> build("small-cnn", kind="encoder", image_size=32).output_size
        128
    """
    if image_size < 1:
        raise ConfigError(f"--image-size {image_size} must be at least 1 pixel.")
    own = ":" in name or name.endswith(".py")
    if kind == "classifier" and classes is None and not own:
        raise ConfigError(f"a {name} classifier needs a number of classes.")
    network = _own(name) if own else _known(name, image_size, classes or 10)
    head = find_head(network)
    if kind == "encoder":
        if head is None and not own:
            raise ArchitectureError(
                f"{name} has no head that is known to be one. Give your own --arch file.py:function."
            )
        if head is not None:
            remove_head(network, head)
        if next(network.parameters(), None) is None:
            raise ArchitectureError(
                f"{name} has no feature layer: without its head {head or ''} no weights are left. "
                "An encoder needs layers before the head; examine it as a classifier instead."
            )
    size = _output_size(network.eval(), name, kind, image_size)
    return Architecture(network, size, (*((head,) if head else ()), *AUXILIARY), head)


def _known(name: str, image_size: int, classes: int) -> nn.Module:
    if name in BUILT_IN:
        return BUILT_IN[name](classes, image_size)
    plain, attentive, stages = name.partition("-attention-")
    if attentive and plain in ATTENTION:
        if not re.fullmatch("1?2?3?4?", stages) or not stages:
            raise ConfigError(
                f"unknown architecture {name!r}: after -attention- come the stages that have it, in order, "
                f"for example {plain}-attention-34. Stages are 1 (the largest maps) to 4."
            )
        return _attentive(plain, stages, classes, image_size)
    models = torchvision.models.list_models(module=torchvision.models)
    if name.endswith("-cifar"):
        stems = [known for known in BUILT_IN if known.endswith("-cifar")]
        raise ConfigError(
            f"there is no {name}: networks with a stem for small images are {', '.join(stems)}. "
            "Use one of them, the network's own name without -cifar, or your own file.py:function."
        )
    if name not in models:
        close = difflib.get_close_matches(name, models, n=3)
        raise ConfigError(
            f"unknown architecture {name!r}. {did_you_mean(name, [*BUILT_IN, *close])} Any torchvision classification "
            "model is accepted beside them, and your own file.py:function."
        )
    options: dict[str, object] = {"weights": None, "num_classes": classes}
    if name.startswith("vit_"):
        options["image_size"] = image_size
    if name.startswith("maxvit"):
        options["input_size"] = (image_size, image_size)
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    try:
        network: nn.Module = torchvision.models.get_model(name, **options)
    except Exception as error:  # torchvision's own checks differ from model to model
        raise ConfigError(
            f"{name} cannot be built for images of {image_size}x{image_size} px ({type(error).__name__}: {error}). "
            "Check --image-size and --arch."
        ) from error
    return network


def _own(name: str) -> nn.Module:
    """Import the defender's file and call the function."""
    file, _, function = name.rpartition(":")
    if not file or not function:
        raise ConfigError(f"--arch {name!r} must be file.py:function, the function returning a torch.nn.Module.")
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise ConfigError(f"--arch {name!r}: there is no file {path}.")
    module_name = f"_sanitize_architecture_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--arch {name!r}: {path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickling of its classes look it up
    sys.path.insert(0, str(path.parent))  # as `python file.py` would, for what lies beside it
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise ConfigError(f"--arch {name!r}: importing {path} failed ({type(error).__name__}: {error}).") from error
    finally:
        sys.path.remove(str(path.parent))
    builder = getattr(module, function, None)
    if not callable(builder):
        offered = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        raise ConfigError(f"--arch {name!r}: {path} has no function {function!r}. {did_you_mean(function, offered)}")
    try:
        network = builder()
    except Exception as error:
        raise ConfigError(f"--arch {name!r}: {function}() failed ({type(error).__name__}: {error}).") from error
    if not isinstance(network, nn.Module):
        raise ConfigError(f"--arch {name!r}: {function}() gave {type(network).__name__} instead of a torch.nn.Module.")
    return network


def _output_size(network: nn.Module, name: str, kind: ModelKind, image_size: int) -> int:
    try:
        with torch.inference_mode():
            output = network(torch.zeros(1, 3, image_size, image_size))
    except Exception as error:  # whatever a foreign architecture raises becomes one clear message
        raise ArchitectureError(
            f"{name} cannot take RGB images of {image_size}x{image_size} px ({type(error).__name__}: "
            f"{str(error)[:300]}). Check --image-size and --arch."
        ) from error
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != 1:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        what = "features (N, D)" if kind == "encoder" else "logits (N, C)"
        raise ArchitectureError(
            f"{name} gives {shape} for one image where {what} are needed. "
            "Give your own --arch file.py:function that pools and flattens its output."
        )
    return output.shape[1]
