"""From what the user names to what the work needs: the suspect rebuilt, its data loaded, everything checked first."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sanitize.data import ImageSet, Trigger, load_images
from sanitize.data.room import Room
from sanitize.data.suspected import load_suspected
from sanitize.errors import ConfigError
from sanitize.suspects import Rebuilt, Tensors, architecture_names, read_tensors, rebuild
from sanitize.tracking import Binding, ModelReference, Store, binding_of
from sanitize.types import ModelKind, Normalization


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user may say about a suspect; whatever is None is taken from the binding of the registered model.

    Args:
        model: ``models:/name/1``, ``models:/name@alias``, ``models:/m-...``, ``runs:/id/path``.
        kind: What the suspect is taken for.
        data: Clean images for the defence.
        probe_data: Labelled images for the linear probe.
        test_data: Labelled images for the evaluation.
        triggers: Trigger specifications; evaluation only.
        arch: Architecture.
        normalization: Name of the normalization.
        image_size: Pixels.
        allow_stubbed: Read pickles that name unknown classes, as inert stubs.
        suspected: File with the images of `data` that the user guesses to be poisoned.
        skip_unreadable: Leave out images of `data` that cannot be decoded.
        room: For images of `data` that may not fit in memory.
    """

    model: str
    kind: ModelKind | None = None
    data: str | None = None
    probe_data: str | None = None
    test_data: str | None = None
    triggers: Sequence[str | Path] = ()
    arch: str | None = None
    normalization: str | None = None
    image_size: int | None = None
    allow_stubbed: bool = False
    suspected: str | Path | None = None
    skip_unreadable: bool = False
    room: Room | None = None


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything a defence and the evaluation need, in memory.

    Args:
        reference: Where the suspect is in the registry.
        tensors: What its files hold: weights, digest, findings.
        suspect: The rebuilt network.
        data: Images for the defence, or None.
        probe_data: Labelled images for the probe, or None.
        test_data: Labelled images for the evaluation, or None.
        triggers: Known triggers.
        options: What the user gave on top of the binding, as command line options.
        fingerprint: What decides the result, by name: digests and settings.
    """

    reference: ModelReference
    tensors: Tensors
    suspect: Rebuilt
    data: ImageSet | None
    probe_data: ImageSet | None
    test_data: ImageSet | None
    triggers: tuple[Trigger, ...]
    options: tuple[tuple[str, str], ...] = ()
    fingerprint: dict[str, str] = field(default_factory=dict)


def complete(request: Request, binding: Binding | None) -> Request:
    """Fill what the user left out from the binding record.

    Raises:
        ConfigError: Kind, architecture, normalization or image size is known from neither, the bound kind is another,
            or images are suspected of data that is not named.
    """
    if binding is not None:
        if request.kind not in (None, binding.kind):
            raise ConfigError(
                f"{request.model} is bound as {binding.kind}, and {request.kind} was asked for. "
                f"Bind it anew with `sanitize bind --kind {request.kind}` if that is wrong."
            )
        request = replace(
            request,
            kind=binding.kind,
            data=request.data or binding.data,
            probe_data=request.probe_data or binding.probe_data,
            test_data=request.test_data or binding.test_data,
            triggers=request.triggers or tuple(binding.trigger_paths),
            arch=request.arch or binding.architecture,
            normalization=request.normalization or binding.normalization,
            image_size=request.image_size or binding.image_size,
        )
    if request.kind is None:
        raise ConfigError(
            f"{request.model}: is it an encoder or a classifier? Say so with `sanitize encoder` or `sanitize "
            "classifier` (kind= in Python), or bind it to the registered model with `sanitize bind --kind`."
        )
    if request.suspected is not None and request.data is None:
        raise ConfigError(f"--suspected {request.suspected} names images of --data, and there is none.")
    missing = [
        option
        for option, value in (
            ("--arch", request.arch),
            ("--normalization", request.normalization),
            ("--image-size", request.image_size),
        )
        if value is None
    ]
    if missing:
        raise ConfigError(
            f"{request.model}: give {', '.join(missing)}, or bind them to the registered model with `sanitize bind`. "
            "What the suspect's own files say is not used. "
            f"Built-in architectures: {', '.join(architecture_names())}; torchvision's names and file.py:function "
            "work too."
        )
    return request


def gather(request: Request, store: Store, folder: Path) -> Inputs:
    """Resolve, download, read and rebuild the suspect; load data and triggers.

    Args:
        request: From the user.
        store: MLflow.
        folder: Quarantine; emptied by the caller.

    Raises:
        SanitizeError: Anything is missing, unsafe, or does not fit; nothing was written to the registry.
    """
    reference = store.resolve(request.model)
    binding = binding_of(store, reference.name, folder / "binding") if reference.name else None
    options = _options(request)
    request = complete(request, binding)
    # complete() has seen to it
    assert request.kind and request.arch and request.normalization and request.image_size
    normalization = Normalization.named(request.normalization)
    triggers = tuple(Trigger.from_yaml(Path(path)) for path in request.triggers)
    loaded: dict[str, ImageSet | None] = {}
    for name, source in (("data", request.data), ("probe", request.probe_data), ("test", request.test_data)):
        loaded[name] = (
            load_images(
                source,
                image_size=request.image_size,
                resolve=lambda uri, name=name: store.artifact(uri, folder / name),  # type: ignore[misc]
                skip_unreadable=request.skip_unreadable and name == "data",
                room=request.room if name == "data" else None,
            )
            if source
            else None
        )
    if request.suspected is not None and (data := loaded["data"]) is not None:
        loaded["data"] = replace(data, suspected=load_suspected(Path(request.suspected), len(data)))
    downloaded = store.download(reference, folder / "suspect")
    tensors = read_tensors(downloaded, allow_stubbed=request.allow_stubbed)
    suspect = rebuild(
        tensors,
        kind=request.kind,
        architecture=request.arch,
        normalization=normalization,
        image_size=request.image_size,
    )
    digests = {f"{name} data": images.sha256 for name, images in loaded.items() if images is not None}
    return Inputs(
        reference=reference,
        tensors=tensors,
        suspect=suspect,
        data=loaded["data"],
        probe_data=loaded["probe"],
        test_data=loaded["test"],
        triggers=triggers,
        options=options,
        fingerprint={
            "model": reference.uri,
            "kind": request.kind,
            "weights": tensors.sha256,
            "architecture": request.arch,
            "normalization": request.normalization,
            "image size": str(request.image_size),
            "triggers": " ".join(trigger.sha256 for trigger in triggers),
            "architecture code": code_digest(request.arch),
            **digests,
        },
    )


def _options(request: Request) -> tuple[tuple[str, str], ...]:
    given = (
        ("--data", request.data),
        ("--suspected", request.suspected),
        ("--probe-data", request.probe_data),
        ("--test-data", request.test_data),
        *(("--trigger", trigger) for trigger in request.triggers),
        ("--arch", request.arch),
        ("--normalization", request.normalization),
        ("--image-size", request.image_size),
    )
    return tuple((option, str(value)) for option, value in given if value is not None)


def code_digest(architecture: str) -> str:
    """Digest of the defender's own architecture file; empty for a built-in or torchvision name."""
    file, separator, _ = architecture.rpartition(".py:")
    return hashlib.sha256(Path(f"{file}.py").expanduser().read_bytes()).hexdigest() if separator else ""
