"""Decoupled training on untrusted data: features without labels, then a filter, then the labels of trusted images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, JsonValue
from torch import Tensor, nn
from torch.optim import Adam

from sanitize.data import DeviceImages, ImageSet
from sanitize.data.crops import PaddedCrops
from sanitize.data.labels import training_labels
from sanitize.errors import ConfigError, DataError
from sanitize.functional.symmetric import symmetric_cross_entropy
from sanitize.suspects.heads import find_head, remove_head
from sanitize.suspects.networks import Encoder, Network
from sanitize.trainers.base import Filtering, Paper, Trained, Trainer
from sanitize.trainers.byol import BYOL
from sanitize.trainers.mixmatch import MixMatch, Trust, lowest
from sanitize.trainers.moco_v3 import MoCoV3
from sanitize.trainers.simclr import SimCLR
from sanitize.trainers.ssl import SSLTrainer
from sanitize.training import Engine, History, Watch
from sanitize.types import Finding, ModelKind, Severity

_SSL: dict[str, type[SSLTrainer]] = {trainer.name: trainer for trainer in (SimCLR, BYOL, MoCoV3)}
_SSL_SETTINGS: dict[str, Any] = {"epochs": 100, "blur": (0.5, 0.5)}
_NOT_THERE: dict[str, JsonValue] = {"paper": "not there"}
_RARELY = 0.1  # a class that is trusted less than a tenth as often as all images is named in a finding


class Decoupled(Trainer):
    """Decoupled training with symmetric cross-entropy (Yuan, Huang, Li), after DBD (Huang et al., ICLR 2022).

    A backdoor ties a trigger to a label. (a) The features are trained without labels. (b) They are frozen, in eval
    mode, and a linear classifier is trained on all labels with a loss that wrong labels pull little; the share of
    images with the lowest losses, not augmented, is trusted. (c) The whole network is fine-tuned by MixMatch: trusted
    images with their labels, all others without. The split is made anew before each epoch.

    For its backbone with self-attention choose an architecture such as ``resnet34-cifar-attention``.

    Differs from the paper, which is silent or contradicts itself in places (then it is DBD's way):
        - The classifier is one linear layer on the features of images that are not augmented; the paper's text has ten
          layers, its table one.
        - Batch norm of the frozen network stands still. In DBD's code it drifts.
        - Losses are those of images that are not augmented. DBD augments them.
        - An epoch of the fine-tuning is one pass over the trusted images, not 1,024 steps, unless `steps` is set.
        - The weight of the unlabelled part reaches its full value in the last epoch, however many there are.

    Example:
        >>> from sanitize.data import load_images
        >>> from sanitize.suspects import untrained
        >>> network = untrained("small-cnn-attention", kind="classifier", image_size=32, classes=10)
        >>> trainer = Decoupled(ssl_settings={"epochs": 1, "batch_size": 32}, classifier_epochs=1, epochs=1, flip=0.0)
        >>> trained = trainer.train(network, load_images("digits#0:64"), Engine(device="cpu"))
        >>> int(trained.filterings["classifier"].trusted.sum())
        32
    """

    name: ClassVar[str] = "decoupled"
    summary: ClassVar[str] = "features without labels, a filter by symmetric cross-entropy, then MixMatch"
    paper: ClassVar[Paper] = Paper(
        "Self-supervised learning backdoor defense mixed with self-attention mechanism; "
        "Backdoor Defense via Decoupling the Training Process",
        "Yuan, Huang, Li; and Huang et al., ICLR 2022",
        "https://openreview.net/forum?id=TySnJ-0RdKI",
    )
    kind: ClassVar[ModelKind] = "classifier"
    needs_labels: ClassVar[bool] = True
    filters: ClassVar[bool] = True

    ssl: Literal["simclr", "byol", "moco-v3", "given"] = Field(
        "simclr", description="training of the features; given: the network has features from an encoder already"
    )
    ssl_settings: dict[str, Any] = Field(
        {},
        description="of that training, by its own names, over 100 epochs with blur in half of the views",
        json_schema_extra={"paper": "100 epochs, all else not said"},
    )
    classifier_epochs: int = Field(10, ge=1, description="of the linear classifier")
    classifier_batch_size: int = Field(
        128, ge=1, description="of the linear classifier", json_schema_extra={"paper": 64}
    )
    classifier_learning_rate: float = Field(
        2e-3, gt=0, description="of Adam, for the linear classifier", json_schema_extra={"paper": 5e-3}
    )
    loss: Literal["sce", "ce"] = Field("sce", description="of the linear classifier, and what images are ranked by")
    sce_alpha: float = Field(0.1, ge=0, description="weight of the cross-entropy in the symmetric one")
    sce_beta: float = Field(1.0, ge=0, description="weight of the reverse cross-entropy")
    keep_ratio: float = Field(
        0.5, gt=0, lt=1, description="share of the images that is trusted", json_schema_extra={"paper": "more than 0.5"}
    )
    per_class: bool = Field(
        False, description="trust that share of each class, so that none is lost", json_schema_extra=_NOT_THERE
    )
    epochs: int = Field(
        120, ge=0, description="of the fine-tuning; 0 stops at the linear classifier on the frozen features"
    )
    steps: int | None = Field(
        None,
        ge=1,
        description="of the fine-tuning an epoch; when left out one pass over the trusted images",
        json_schema_extra={"paper": "not said; 1024 in DBD"},
    )
    batch_size: int = Field(64, ge=2, description="trusted images a step of the fine-tuning, and as many others twice")
    learning_rate: float = Field(2e-3, gt=0, description="of Adam, for the fine-tuning")
    labelled_loss: Literal["ce", "sce"] = Field(
        "ce", description="of the fine-tuning, on trusted images", json_schema_extra={"paper": "sce"}
    )
    temperature: float = Field(0.5, gt=0, description="of guessed labels; below 1 sharpens them")
    mixing: float = Field(0.75, gt=0, description="a of Beta(a, a), by which images are mixed")
    unlabelled_weight: float = Field(15.0, ge=0, description="of the images without labels, in the last epoch")
    resplit: bool = Field(True, description="decide anew before each epoch of the fine-tuning who is trusted")
    crop_padding: int = Field(4, ge=0, description="pixels by which images are shifted at most, in the fine-tuning")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a mirrored image; 0 where left and right differ")

    def model_post_init(self, context: Any, /) -> None:
        """Settings of the self-supervised training are checked with the others."""
        if self.ssl == "given" and self.ssl_settings:
            raise ConfigError(f"{self.name}: ssl_settings have no effect with ssl=given.")
        self.pretraining()

    @property
    def starts_trained(self) -> bool:
        """Whether the features come from elsewhere."""
        return self.ssl == "given"

    def pretraining(self) -> SSLTrainer | None:
        """The training of the features; None where they are given.

        Raises:
            ConfigError: A setting is unknown or out of range.
        """
        if self.ssl == "given":
            return None
        return _SSL[self.ssl](**(_SSL_SETTINGS | {"flip": self.flip} | self.ssl_settings))

    def train(
        self, network: Network, data: ImageSet, engine: Engine, *, monitor: tuple[ImageSet, ImageSet] | None = None
    ) -> Trained:
        """Train a classifier in place; see `Trainer.train`.

        Raises:
            ConfigError: The network is no classifier with a linear head.
            DataError: Labels are missing or not the network's, images have another size or do not fill one batch of
                the self-supervised training, or none would be trusted.
        """
        head = self._check(network, data)
        labels = training_labels(data, self.name, classes=network.spec.output_size)
        self._check_share(labels)
        images = DeviceImages(data, engine.device)
        history: dict[str, History] = {}
        metrics: dict[str, float | None] = {}
        with _headless(network, head) as encoder:
            pretraining = self.pretraining()
            if pretraining is not None:
                pretrained = pretraining.train(encoder, data.without_labels(), engine, monitor=monitor)
                history |= pretrained.history
                metrics |= pretrained.metrics
            frozen = _Features(encoder, images, engine)
            classifier = _linear(encoder.spec.output_size, network.spec.output_size, engine)
            history["classifier"] = self._classify(classifier, frozen, labels, engine)
        layer = network.backbone.get_submodule(head)
        layer.load_state_dict(classifier.state_dict())
        network.to(engine.device)
        filterings = {"classifier": self._filter(network, images, labels, engine)}
        if self.epochs:
            trust = Trust(
                filterings["classifier"],
                (lambda module: self._filter(module, images, labels, engine)) if self.resplit else None,
                weight=self.unlabelled_weight,
                epochs=self.epochs,
            )
            watch = _accuracy_on(monitor[1], engine) if monitor else None
            history["mixmatch"] = self._fine_tune(network, images, trust, engine, watch)
            filterings["mixmatch"] = trust.now
        return Trained(network.eval(), history, metrics, findings=_findings(filterings, data), filterings=filterings)

    def _loss(self, name: str, logits: Tensor, targets: Tensor) -> Tensor:
        if name == "ce":
            return symmetric_cross_entropy(logits, targets, alpha=1.0, beta=0.0)
        return symmetric_cross_entropy(logits, targets, alpha=self.sce_alpha, beta=self.sce_beta)

    def _check(self, network: Network, data: ImageSet) -> str:
        """Dotted name of the head."""
        spec = network.spec
        if spec.kind != "classifier":
            raise ConfigError(f"{self.name} trains classifiers, and this is an {spec.kind}.")
        if data.image_size != spec.image_size:
            raise DataError(f"{self.name}: images have {data.image_size} px, the network takes {spec.image_size} px.")
        head = find_head(network.backbone)
        if head is None or not isinstance(network.backbone.get_submodule(head), nn.Linear):
            raise ConfigError(
                f"{self.name} trains features and a linear layer apart, and {spec.architecture} has no linear head "
                "that is known. Choose another --arch, or call the last layer of your own fc, head or classifier."
            )
        return head

    def _check_share(self, labels: Tensor) -> None:
        if not lowest(torch.zeros(len(labels)), labels, self.keep_ratio, per_class=self.per_class).any():
            of_each = " of each class" if self.per_class else ""
            raise DataError(
                f"{self.name}: {self.keep_ratio:g} of {len(labels)} images{of_each} is none. Raise keep_ratio, or give "
                "more images."
            )

    def _classify(self, classifier: nn.Linear, frozen: _Features, labels: Tensor, engine: Engine) -> History:
        """Train a linear classifier of the frozen features on all labels."""
        known = labels.to(engine.device)

        def loss(module: nn.Module, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            rows = indices.to(engine.device)
            return {"loss": self._loss(self.loss, module(frozen.values[rows]).float(), known[rows]).mean()}

        return engine.fit(
            "classifier",
            classifier,
            loss,
            images=len(labels),
            batch_size=self.classifier_batch_size,
            epochs=self.classifier_epochs,
            optimizer=lambda parameters: Adam(parameters, lr=self.classifier_learning_rate),
        )

    def _filter(self, network: nn.Module, images: DeviceImages, labels: Tensor, engine: Engine) -> Filtering:
        """Rank the images as they are, without augmentation."""
        logits = engine.forward(network, images.pixels, len(images))
        losses = self._loss(self.loss, logits, labels)
        return Filtering(losses, lowest(losses, labels, self.keep_ratio, per_class=self.per_class))

    def _fine_tune(
        self, network: Network, images: DeviceImages, trust: Trust, engine: Engine, watch: Watch | None
    ) -> History:
        trusted = int(trust.first.trusted.sum())
        return engine.fit(
            "mixmatch",
            network,
            MixMatch(
                images,
                network.spec.output_size,
                trust,
                PaddedCrops(self.crop_padding, flip=self.flip),
                lambda logits, targets: self._loss(self.labelled_loss, logits, targets),
                self.temperature,
                self.mixing,
            ),
            images=self.steps * self.batch_size if self.steps else trusted,
            batch_size=self.batch_size,
            epochs=self.epochs,
            drop_last=True,
            optimizer=lambda parameters: Adam(parameters, lr=self.learning_rate),
            companion=trust,
            watch=watch,
        )


class _Features:
    """Features of all images, made when they are first asked for: a rehearsal does not come so far."""

    def __init__(self, encoder: Network, images: DeviceImages, engine: Engine) -> None:
        self.encoder = encoder
        self.images = images
        self.engine = engine

    @cached_property
    def values(self) -> Tensor:
        """(N, D) on the device, in eval mode."""
        return self.engine.forward(self.encoder, self.images.pixels, len(self.images)).to(self.engine.device)


@contextmanager
def _headless(network: Network, head: str) -> Iterator[Encoder]:
    """The network as an encoder, with the same layers; afterwards the head is back in its place."""
    parent, _, name = head.rpartition(".")
    layer = network.backbone.get_submodule(head)
    assert isinstance(layer, nn.Linear)  # checked before
    remove_head(network.backbone, head)
    try:
        yield Encoder(network.backbone, replace(network.spec, kind="encoder", output_size=layer.in_features))
    finally:
        setattr(network.backbone.get_submodule(parent), name, layer)


def _linear(inputs: int, outputs: int, engine: Engine) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(engine.seed)  # layers are initialised by torch's global generator
        return nn.Linear(inputs, outputs)


def _accuracy_on(test: ImageSet, engine: Engine) -> Watch:
    images, labels = DeviceImages(test, engine.device), test.require_labels("the monitor")

    def watch(network: nn.Module) -> tuple[dict[str, float], str | None]:
        predicted = engine.forward(network, images.pixels, len(images)).argmax(dim=1)
        return {"test_accuracy": float((predicted == labels).float().mean())}, None

    return watch


def _findings(filterings: dict[str, Filtering], data: ImageSet) -> list[Finding]:
    """How many images of each class are trusted in the end; classes of which hardly any is."""
    trusted, labels, names = (
        list(filterings.values())[-1].trusted,
        data.require_labels("the findings"),
        data.class_names,
    )
    counts = {}
    for label in torch.unique(labels).tolist():
        own = trusted[labels == label]
        counts[names[label] if names else str(label)] = {"trusted": int(own.sum()), "all": len(own)}
    total = int(trusted.sum())
    message = f"{total} of {len(labels)} images were trusted in the end; the labels of the others were not used."
    found = [Finding(rule="decoupled-trusted", severity=Severity.NOTE, message=message, evidence={"classes": counts})]
    rare = [name for name, n in counts.items() if n["trusted"] < _RARELY * total / len(labels) * n["all"]]
    if rare:
        message = (
            f"Hardly any image of {', '.join(rare)} was trusted in the end: the classifier may not know what it looks "
            "like. With per_class=true the same share of each class is trusted."
        )
        found.append(
            Finding(
                rule="decoupled-class-not-trusted",
                severity=Severity.WARNING,
                message=message,
                evidence={"classes": rare},
            )
        )
    return found
