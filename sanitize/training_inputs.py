"""From what the user names to what a training needs: data loaded, network built, everything checked first."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sanitize.data import ImageSet, Trigger, load_images
from sanitize.data.room import MEMORY, Room
from sanitize.errors import ConfigError, DataError
from sanitize.evaluation import ClassifierEvaluator, EncoderEvaluator, Evaluator
from sanitize.inputs import code_digest
from sanitize.known_poison import known_poison
from sanitize.rehearsal import rehearse
from sanitize.suspects import Network, read_tensors, rebuild, untrained
from sanitize.tracking import ModelReference, Store, binding_of
from sanitize.tracking.intake import check_kind, check_name
from sanitize.trainers import Trainer
from sanitize.types import ModelKind


@dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """What is trained on what, and where it goes.

    Args:
        data: Training images.
        register: Registered model that gets the new version.
        arch: Architecture.
        normalization: Name of the normalization.
        image_size: Pixels.
        probe_data: Labelled images for the linear probe of an encoder; `data` where that is labelled.
        test_data: Labelled images for the evaluation.
        triggers: Known triggers, for the evaluation only.
        encoder: Model whose features a training starts from that asks for them: a ``models:/`` or ``runs:/`` URI.
        truth: Which training images are poisoned, for the evaluation of a training that filters them only; as in
            `sanitize.dataset_inputs.DatasetRequest`.
        memory: GiB that the images of each set may take; more than that are kept in a file of the work directory.
    """

    data: str
    register: str
    arch: str
    normalization: str
    image_size: int
    probe_data: str | None = None
    test_data: str | None = None
    triggers: Sequence[str | Path] = ()
    encoder: str | None = None
    truth: str | None = None
    memory: float = MEMORY


@dataclass(frozen=True, kw_only=True)
class TrainingInputs:
    """Everything a training and its evaluation need, in memory.

    Args:
        data: Training images, as the training is going to see them.
        probe_data: Labelled images for the linear probe, or None.
        test_data: Labelled images for the evaluation, or None.
        triggers: Known triggers.
        network: Untrained, or with the features of the encoder that was named.
        poisoned: (N,) bool, the truth; None where it is not known. Evaluation only.
        evaluator: Measures it.
        reference: The data, as the subject of the report.
        fingerprint: What decides the result, by name: digests and settings.
    """

    data: ImageSet
    probe_data: ImageSet | None
    test_data: ImageSet | None
    triggers: tuple[Trigger, ...]
    network: Network
    poisoned: Tensor | None
    evaluator: Evaluator
    reference: ModelReference
    fingerprint: dict[str, str]

    @property
    def monitor(self) -> tuple[ImageSet, ImageSet] | None:
        """What a training may log its accuracy on."""
        bank = self.probe_data if self.network.spec.kind == "encoder" else self.data
        return (bank, self.test_data) if bank is not None and self.test_data is not None else None


def gather_training(
    request: TrainingRequest, trainer: Trainer, *, seed: int, store: Store, folder: Path
) -> TrainingInputs:
    """Load data and triggers, build the network, and check all of it; nothing is written to the store.

    Args:
        request: From the user.
        trainer: What is going to train.
        seed: Of the network's first weights.
        store: MLflow.
        folder: For downloads; emptied by the caller.

    Raises:
        SanitizeError: Something is missing, unfit or out of reach.
    """
    check_name(request.register)

    room = Room(round(request.memory * 2**30), folder / "overflow")

    def load(source: str, name: str) -> ImageSet:
        return load_images(
            source, image_size=request.image_size, resolve=lambda uri: store.artifact(uri, folder / name), room=room
        )

    data = load(request.data, "data")
    network = fresh_network(
        trainer,
        data,
        request.arch,
        image_size=request.image_size,
        normalization=request.normalization,
        seed=seed,
        encoder=request.encoder,
    )
    weights = _start(network, request, trainer, store, folder / "encoder")
    triggers = fitting_triggers(request.triggers, request.image_size)
    if triggers and not request.test_data:
        raise ConfigError("--trigger shows something on labelled test images only; give them with --test-data.")
    labelled = data if data.labels is not None else None
    probe_data = load(request.probe_data, "probe") if request.probe_data else labelled
    test_data = load(request.test_data, "test") if request.test_data else None
    evaluator = evaluator_for(trainer.kind, probe_data=probe_data, test_data=test_data, triggers=triggers)
    evaluator.check(network.spec)
    check_kind(store, request.register, "model")
    poisoned = _known_poison(request, trainer, data, store)
    inputs = TrainingInputs(
        data=data if trainer.needs_labels else data.without_labels(),
        probe_data=probe_data if trainer.kind == "encoder" else None,
        test_data=test_data,
        triggers=triggers,
        network=network,
        poisoned=poisoned,
        evaluator=evaluator,
        reference=_pinned(request.data, store),
        fingerprint={
            "data": data.sha256,
            "probe data": probe_data.sha256 if probe_data else "",
            "test data": test_data.sha256 if test_data else "",
            "triggers": " ".join(trigger.sha256 for trigger in triggers),
            "registered model": request.register,
            "architecture": request.arch,
            "architecture code": code_digest(request.arch),
            "normalization": request.normalization,
            "image size": str(request.image_size),
            "encoder": weights,
            "truth": str(request.truth),
        },
    )
    rehearse(
        lambda engine: trainer.train(copy.deepcopy(network), inputs.data, engine, monitor=inputs.monitor), seed=seed
    )
    return inputs


def fresh_network(
    trainer: Trainer,
    data: ImageSet,
    arch: str,
    *,
    image_size: int,
    normalization: str,
    seed: int,
    encoder: str | None = None,
) -> Network:
    """An untrained network of the kind that a training needs, with a logit for each class of the data.

    Raises:
        ConfigError: A name is unknown, or the training starts from an encoder and there is none.
        ArchitectureError: The network does not take such images.
        DataError: Labels are missing, or images too few.
    """
    if trainer.starts_trained and encoder is None:
        raise ConfigError(
            f"{trainer.name} as it is set starts from an encoder; name it with --encoder of `sanitize train`."
        )
    if trainer.needs_labels:
        data.require_labels(trainer.name)
    if len(data) < trainer.minimum_images:
        raise DataError(f"{trainer.name} needs at least {trainer.minimum_images} images; {data.uri} has {len(data)}.")
    classes = None
    if data.labels is not None:
        classes = len(data.class_names) if data.class_names else int(data.labels.max()) + 1
    return untrained(
        arch, kind=trainer.kind, image_size=image_size, normalization=normalization, classes=classes, seed=seed
    )


def _start(network: Network, request: TrainingRequest, trainer: Trainer, store: Store, folder: Path) -> str:
    """Put the features of the encoder that was named into the network; the digest of its weights, or nothing."""
    if request.encoder is None:
        return ""
    if not trainer.starts_trained:
        raise ConfigError(f"--encoder {request.encoder}: {trainer.name} as it is set trains its features itself.")
    reference = store.resolve(request.encoder)
    binding = binding_of(store, reference.name, folder / "binding") if reference.name else None
    if binding is not None and binding.normalization not in (None, request.normalization):
        raise ConfigError(
            f"--encoder {request.encoder} is bound with normalization {binding.normalization}, and --normalization is "
            f"{request.normalization}. Features need the one that they were trained with."
        )
    tensors = read_tensors(store.download(reference, folder / "files"))
    features = rebuild(
        tensors,
        kind="encoder",
        architecture=request.arch,
        normalization=network.spec.normalization,
        image_size=request.image_size,
    )
    network.backbone.load_state_dict(features.network.backbone.state_dict(), strict=False)  # it has no head
    return tensors.sha256


def _known_poison(request: TrainingRequest, trainer: Trainer, data: ImageSet, store: Store) -> Tensor | None:
    if request.truth is None:
        return None
    if not trainer.filters:
        raise ConfigError(f"--truth judges trainings that tell trusted images from others; {trainer.name} does not.")
    return known_poison(request.truth, data, store)


def fitting_triggers(paths: Sequence[str | Path], image_size: int) -> tuple[Trigger, ...]:
    """Read trigger specifications, and try each on an image of this size.

    Raises:
        ConfigError: A file cannot be read, or a trigger does not fit.
    """
    triggers = tuple(Trigger.from_yaml(Path(path)) for path in paths)
    for trigger in triggers:
        trigger.apply(torch.zeros(1, 3, image_size, image_size))
    return triggers


def evaluator_for(
    kind: ModelKind, *, probe_data: ImageSet | None, test_data: ImageSet | None, triggers: Sequence[Trigger]
) -> Evaluator:
    """What measures networks of a kind.

    Raises:
        DataError: Labels are missing, or a trigger's target is not among the classes.
    """
    if kind == "classifier":
        return ClassifierEvaluator(test_data=test_data, triggers=triggers)
    return EncoderEvaluator(probe_data=probe_data, test_data=test_data, triggers=triggers)


def _pinned(data: str, store: Store) -> ModelReference:
    """The data as a subject; an alias is replaced by the version that it stands for today."""
    uri, mark, rows = data.partition("#")
    if uri.startswith(("models:/", "runs:/")):
        uri = store.resolve(uri).pinned_uri
    return ModelReference(uri=f"{uri}{mark}{rows}", source_uri=f"{uri}{mark}{rows}")
