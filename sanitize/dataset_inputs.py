"""From what the user names to what a detector of poisoned images needs; everything is checked first."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from sanitize.data import ImageSet, load_images
from sanitize.data.filtering import Original
from sanitize.data.labels import training_labels
from sanitize.data.room import MEMORY, Room
from sanitize.data.rows import Rows
from sanitize.detection import DataDetector
from sanitize.errors import ConfigError
from sanitize.inputs import Inputs, Request, code_digest, gather
from sanitize.known_poison import known_boxes, known_poison
from sanitize.rehearsal import rehearse
from sanitize.suspects import Network
from sanitize.tracking import ModelReference, Store
from sanitize.tracking.intake import check_kind, check_name
from sanitize.trainers import Trainer
from sanitize.training_inputs import TrainingRequest, evaluator_for, fitting_triggers, fresh_network


@dataclass(frozen=True, kw_only=True)
class DatasetRequest:
    """Which data are examined with which network, and where the rest goes.

    Args:
        data: The suspect data.
        model: A model of the registry that was trained on such data; None trains one.
        register: Registered data set that gets the cleaned version; that of `data` when left out.
        truth: What is poisoned, for the evaluation only: ``models:/NAME/VERSION`` or the file of a drill, or a folder
            with a ``truth.npz`` (array `poisoned`, and `boxes` where it is known where the triggers are).
        arch: Architecture of the network.
        normalization: Its normalization.
        image_size: Pixels; the size of the images when left out.
        allow_stubbed: Read pickles that name unknown classes, as inert stubs.
        skip_unreadable: Leave out images that cannot be decoded, and list them; else they are an error.
        memory: GiB that the images may take; more than that are kept in a file of the work directory.
        register_model: Registered model that gets a network trained on the cleaned data; None trains none.
        test_data: Labelled images for the evaluation of that network.
        triggers: Known triggers, for the same.
    """

    data: str
    model: str | None = None
    register: str | None = None
    truth: str | None = None
    arch: str | None = None
    normalization: str | None = None
    image_size: int | None = None
    allow_stubbed: bool = False
    skip_unreadable: bool = False
    memory: float = MEMORY
    register_model: str | None = None
    test_data: str | None = None
    triggers: Sequence[str | Path] = ()


@dataclass(frozen=True, kw_only=True)
class DatasetInputs:
    """Everything a detector needs, in memory.

    Args:
        data: The images, as the network sees them.
        original: The images as they lie on disk.
        reference: The data in the registry; None for data from elsewhere.
        name: Registered data set that gets the cleaned version.
        network: The threat model: the suspect, or an untrained network.
        suspect: Where the threat model comes from; None where it is trained here.
        poisoned: (N,) bool, the truth; None where it is not known. Evaluation only.
        boxes: (N, 4), where the triggers are, see `measure_windows`; None where it is not known. Evaluation only.
        fingerprint: What decides the result, by name: digests and settings.
    """

    data: ImageSet
    original: Original
    reference: ModelReference | None
    name: str
    network: Network
    suspect: Inputs | None
    poisoned: Tensor | None
    boxes: Tensor | None
    fingerprint: dict[str, str]


def gather_dataset(
    request: DatasetRequest, detector: DataDetector, trainer: Trainer, *, seed: int, store: Store, folder: Path
) -> DatasetInputs:
    """Load the data, read the suspect or build a network, and check all of it; nothing is written to the store.

    Args:
        request: From the user.
        detector: What is going to look for poisoned images.
        trainer: What is going to train the threat model, where no model is given.
        seed: Of the network's first weights.
        store: MLflow.
        folder: For downloads; emptied by the caller.

    Raises:
        SanitizeError: Something is missing, unfit or out of reach.
    """
    source, _ = Rows.split(request.data)
    rows = request.data[len(source) :]
    reference = store.resolve(source) if source.startswith(("models:/", "runs:/")) else None
    name = _target(request, reference)
    check_kind(store, name, "data")
    path = store.download(reference, folder / "data") if reference else None
    room = Room(round(request.memory * 2**30), folder / "overflow")
    suspect = None
    if request.model is None:
        data = load_images(
            request.data,
            image_size=request.image_size,
            resolve=None if path is None else lambda _: path,
            skip_unreadable=request.skip_unreadable,
            room=room,
        )
    else:
        suspect = gather(
            Request(
                model=request.model,
                kind=detector.kind,
                data=request.data if path is None else f"{path}{rows}",
                arch=request.arch,
                normalization=request.normalization,
                image_size=request.image_size,
                allow_stubbed=request.allow_stubbed,
                skip_unreadable=request.skip_unreadable,
                room=room,
            ),
            store,
            folder / "suspect",
        )
        assert suspect.data is not None  # it was named
        data = suspect.data
    data = replace(data, uri=f"{reference.pinned_uri}{rows}" if reference else request.data)
    _check_data(data, detector)
    network = suspect.suspect.network if suspect else _untrained(request, trainer, data, seed)
    labelled = data if data.labels is not None else None
    if detector.kind == "classifier":
        training_labels(data, detector.name, classes=network.spec.output_size)
    else:
        data = data.without_labels()
    if suspect is None:
        rehearse(lambda engine: trainer.train(copy.deepcopy(network), data, engine), seed=seed)
    _check_retraining(request, network, labelled, store, folder / "test")
    poisoned = known_poison(request.truth, data, store) if request.truth else None
    boxes = known_boxes(request.truth, data) if request.truth else None
    spec = network.spec
    return DatasetInputs(
        data=data,
        original=Original(request.data, path, skip_unreadable=request.skip_unreadable, room=room),
        reference=reference,
        name=name,
        network=network,
        suspect=suspect,
        poisoned=poisoned,
        boxes=boxes,
        fingerprint={
            "data": data.sha256,
            "registered data set": name,
            "model": suspect.reference.uri if suspect else "",
            "weights": suspect.tensors.sha256 if suspect else "",
            "training": "" if suspect else repr(trainer),
            "architecture": spec.architecture,
            "architecture code": code_digest(spec.architecture),
            "normalization": spec.normalization.name,
            "image size": str(spec.image_size),
            "unreadable": str([picture.row for picture in data.unreadable]),
            "truth": str(request.truth),
            "registered model": str(request.register_model),
            "test data": str(request.test_data),
            "triggers": " ".join(map(str, request.triggers)),
        },
    )


def retraining_request(request: DatasetRequest, data: str, network: Network) -> TrainingRequest:
    """How the network is trained that replaces those of the suspect data."""
    assert request.register_model is not None  # asked for
    return TrainingRequest(
        data=data,
        register=request.register_model,
        arch=network.spec.architecture,
        normalization=network.spec.normalization.name,
        image_size=network.spec.image_size,
        test_data=request.test_data,
        triggers=request.triggers,
        memory=request.memory,
    )


def _target(request: DatasetRequest, reference: ModelReference | None) -> str:
    name = request.register or (reference.name if reference else None)
    if name is None:
        raise ConfigError(
            f"{request.data} is no registered data set: say with --register NAME where a cleaned version of it goes."
        )
    check_name(name)
    return name


def _check_retraining(
    request: DatasetRequest, network: Network, labelled: ImageSet | None, store: Store, folder: Path
) -> None:
    if request.register_model is None:
        if request.test_data or request.triggers:
            raise ConfigError("--test-data and --trigger are for the network that --retrain trains; ask for it.")
        return
    check_name(request.register_model)
    check_kind(store, request.register_model, "model")
    if request.triggers and not request.test_data:
        raise ConfigError("--trigger shows something on labelled test images only; give them with --test-data.")
    spec = network.spec
    triggers = fitting_triggers(request.triggers, spec.image_size)
    test_data = (
        load_images(request.test_data, image_size=spec.image_size, resolve=lambda uri: store.artifact(uri, folder))
        if request.test_data
        else None
    )
    evaluator_for(spec.kind, probe_data=labelled, test_data=test_data, triggers=triggers).check(spec)


def _check_data(data: ImageSet, detector: DataDetector) -> None:
    detector.check(data)
    if detector.kind == "classifier":
        data.require_labels(detector.name)


def _untrained(request: DatasetRequest, trainer: Trainer, data: ImageSet, seed: int) -> Network:
    if request.arch is None or request.normalization is None:
        raise ConfigError(
            "without --model a network is trained on the data first: name it with --arch and --normalization, or give "
            "a model that was trained on such data with --model."
        )
    return fresh_network(
        trainer, data, request.arch, image_size=data.image_size, normalization=request.normalization, seed=seed
    )
