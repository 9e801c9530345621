"""Taking in what others made: checked first, registered as it is, bound to what the defender knows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sanitize.data import Trigger, load_images
from sanitize.data.parquet import SUFFIXES as PARQUET_SUFFIXES
from sanitize.data.unreadable import unreadable_findings
from sanitize.errors import ConfigError, DataError
from sanitize.suspects import build, read_tensors, rebuild
from sanitize.tracking import Binding, Store, bind, register_data, register_model_file
from sanitize.types import Finding, ModelKind, Normalization

_DATA_SUFFIXES = (*PARQUET_SUFFIXES, ".npz")
_CHECKED_SIZE = 32  # px; images of a data set may differ in size until somebody names one
_MODEL_URI = re.compile(r"(?:models:/)?(?P<name>[^/@:]+)")


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """What a defender may know about a model that others made; fields as in `sanitize.inputs.Request`."""

    kind: ModelKind = "encoder"
    data: str | None = None
    probe_data: str | None = None
    test_data: str | None = None
    triggers: Sequence[Path] = ()
    arch: str | None = None
    normalization: str | None = None
    image_size: int | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing but the kind is known."""
        return self == Knowledge(kind=self.kind, triggers=self.triggers) and not self.triggers

    def check(self) -> None:
        """Refuse what could not be used later.

        Raises:
            ConfigError: Unknown architecture or normalization, or an unreadable trigger.
            DataError: A file of images does not exist.
        """
        if self.normalization is not None:
            Normalization.named(self.normalization)
        if self.arch is not None:
            build(self.arch, kind=self.kind, image_size=self.image_size or 224, classes=2)
        for trigger in self.triggers:
            Trigger.from_yaml(trigger)
        for source in (self.data, self.probe_data, self.test_data):
            if source is not None and not re.match(r"digits|torchvision:|runs:/|models:/", source):
                path = Path(re.sub(r"#[^#/]*$", "", source))
                if not path.exists():
                    raise DataError(f"{path} does not exist; give images as a Parquet file, folder, .npz or URI.")


@dataclass(frozen=True)
class TakenIn:
    """A new version in the registry, and what was seen on the way."""

    uri: str
    findings: list[Finding] = field(default_factory=list)


def take_in(
    source: Path,
    name: str,
    known: Knowledge,
    *,
    allow_stubbed: bool = False,
    skip_unreadable: bool = False,
    tracking_uri: str | None = None,
) -> TakenIn:
    """Register an untrusted model file, MLflow model folder or data set; nothing of it is executed.

    Args:
        source: File or folder.
        name: Registered model that gets the version.
        known: Bound to a registered model; with an architecture, normalization and image size the network is rebuilt
            first, so that what does not fit is refused at the door.
        allow_stubbed: Read pickles that name unknown classes, as inert stubs.
        skip_unreadable: Take in data with images that cannot be decoded, as they are; a finding names them.
        tracking_uri: MLflow.

    Raises:
        SanitizeError: Missing, unsafe, unreadable or unfit; nothing is registered then.
    """
    if not source.exists():
        raise ConfigError(f"{source} does not exist.")
    store = Store(tracking_uri)
    if _is_data(source):
        if not known.empty:
            raise ConfigError("a data set takes no --arch, --data or other knowledge: these belong to models.")
        images = load_images(str(source), image_size=_CHECKED_SIZE, skip_unreadable=skip_unreadable)
        reference = register_data(store, source, name)
        total = len(images) + len(images.unreadable)
        findings = unreadable_findings(images.unreadable, total=total, source=str(source))
        return TakenIn(f"models:/{reference.name}/{reference.version}", findings)
    known.check()
    tensors = read_tensors(source, allow_stubbed=allow_stubbed)
    findings = list(tensors.findings)
    if known.arch and known.normalization and known.image_size:
        rebuilt = rebuild(
            tensors,
            kind=known.kind,
            architecture=known.arch,
            normalization=Normalization.named(known.normalization),
            image_size=known.image_size,
        )
        findings += rebuilt.findings
    reference = register_model_file(store, source, name)
    if not known.empty:
        bind(store, name, _binding(known), list(known.triggers))
    return TakenIn(f"models:/{reference.name}/{reference.version}", findings)


def bind_knowledge(model: str, known: Knowledge, *, tracking_uri: str | None = None) -> str:
    """Bind knowledge to a registered model; the id of the run that holds the record.

    Raises:
        ConfigError: Nothing to bind, or something that could not be used later.
        TrackingError: No such model.
    """
    match = _MODEL_URI.fullmatch(model)
    if match is None:
        raise ConfigError(f"{model!r}: a binding belongs to a registered model as a whole; write models:/NAME.")
    if known.empty:
        raise ConfigError("nothing to bind: give --data, --arch, --normalization, --image-size or others.")
    known.check()
    return bind(Store(tracking_uri), match["name"], _binding(known), list(known.triggers))


def _binding(known: Knowledge) -> Binding:
    return Binding(
        data=known.data,
        probe_data=known.probe_data,
        test_data=known.test_data,
        architecture=known.arch,
        normalization=known.normalization,
        image_size=known.image_size,
        kind=known.kind,
    )


def _is_data(source: Path) -> bool:
    if source.is_file():
        return source.suffix.lower() in _DATA_SUFFIXES
    return not (source / "MLmodel").is_file()
