"""D-ST: split untrusted data by FCT, then train features and a classifier that trust labels of clean images only."""

from __future__ import annotations

import copy
import math
from typing import ClassVar, Literal

import torch
from lightly.models.modules import SimCLRProjectionHead
from lightly.utils.scheduler import CosineWarmupScheduler
from pydantic import Field
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from sanitize.data import DeviceImages, ImageSet, SSLViews
from sanitize.data.labels import training_labels
from sanitize.detection import FCT, Scores, Split
from sanitize.detection.fct import feature_extractor, logit_layer
from sanitize.errors import ConfigError, DataError
from sanitize.functional.semi_supervised import Positives, mixed_cross_entropy, semi_supervised_contrast
from sanitize.suspects.networks import Network
from sanitize.trainers.base import Filtering, Paper, Trained, Trainer
from sanitize.trainers.supervised import Supervised
from sanitize.training import Engine, History, Watch
from sanitize.types import Finding, ModelKind, Severity


class DST(Trainer):
    """D-ST: two-stage secure training from scratch on untrusted data (Chen, Wu, Wang; NeurIPS 2022).

    The data is split by `FCT` in a network that is trained on it for a moment: clean (D_c), uncertain, poisoned (D_p).
    (1) Features are trained on all images by the semi-supervised contrastive loss: an image of D_c is drawn to other
    images of D_c with its label, every other image to its own second view only. (2) The features are frozen, in eval
    mode, and a linear classifier is trained on D_c and D_p with the mixed cross-entropy ``CE(D_c) - weight CE(D_p)``.

    Differs from the paper:
        - Positives of a clean image are clean images by default; the release also takes poisoned ones with its label
          (``positives="published"``).
        - D_c is the lowest share of each class, so that no class is missing (``per_class=False``: of all images).
        - Scores are means of 5 draws, drawn once, in a network that is trained for 2 epochs and not fine-tuned on.
        - A group that is missing from a batch counts 0 instead of NaN. The last batch of the first stage is left out.
        - The last epoch is returned, not the best by test accuracy.
        - The warm-up of the learning rate takes at most a tenth of the steps. The classifier's rate falls by a cosine;
          the paper's stays at 5, which leaves noise.

    Example:
        >>> from sanitize.data import load_images
        >>> from sanitize.suspects import untrained
        >>> network = untrained("small-cnn", kind="classifier", image_size=32, normalization="half", classes=10)
        >>> trainer = DST(epochs=1, batch_size=32, classifier_epochs=1, split_epochs=1, flip=0.0)
        >>> trained = trainer.train(network, load_images("digits#0:100"), Engine(device="cpu"))
        >>> int(trained.metrics["clean_images"]), int(trained.metrics["poisoned_images"])
        (16, 5)
    """

    name: ClassVar[str] = "d-st"
    summary: ClassVar[str] = "split by FCT, contrastive features that trust clean labels only, then a linear classifier"
    paper: ClassVar[Paper] = Paper(
        "Effective Backdoor Defense by Exploiting Sensitivity of Poisoned Samples",
        "Chen, Wu, Wang; NeurIPS 2022",
        "https://openreview.net/forum?id=AsH-Tx2U0Ug",
    )
    kind: ClassVar[ModelKind] = "classifier"
    needs_labels: ClassVar[bool] = True
    filters: ClassVar[bool] = True

    split_epochs: int = Field(
        2, ge=1, description="of the network that the split is made in", json_schema_extra={"paper": "2 + 10"}
    )
    split_batch_size: int = Field(64, ge=2, description="of that network", json_schema_extra={"paper": 128})
    split_learning_rate: float = Field(0.01, gt=0, description="of that network; falls by a cosine")
    draws: int = Field(5, ge=1, description="of FCT: transformed copies of an image", json_schema_extra={"paper": 1})
    decision: Literal["auto", "quota"] = Field("quota", description="of FCT: by the scores, or fixed shares")
    clean_share: float = Field(0.2, gt=0, le=1, description="of FCT: share called clean")
    poisoned_share: float = Field(0.05, gt=0, lt=1, description="of FCT: share of all called poisoned (quota)")
    per_class: bool = Field(
        True,
        description="quota: the clean share is taken of each class, so that none is missing",
        json_schema_extra={"paper": False},
    )
    positives: Positives = Field(
        "strict",
        description="of a clean image: clean ones with its label (strict), or all with its label (published); own: "
        "views only; labels: all with the same label, of every image",
        json_schema_extra={"paper": "published"},
    )
    epochs: int = Field(200, ge=1, description="of the features")
    batch_size: int = Field(512, ge=2, description="images a step, two views each")
    learning_rate: float = Field(0.5, gt=0, description="of the features; highest of warm-up and cosine")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD, in both stages")
    weight_decay: float = Field(1e-4, ge=0, description="of the features")
    warmup_epochs: int = Field(10, ge=0, description="linear warm-up, at most a tenth of all steps")
    temperature: float = Field(0.1, gt=0, description="of the softmax over cosines")
    dimensions: int = Field(128, ge=1, description="output of the projector, whose hidden layer is as wide as features")
    min_crop_scale: float = Field(0.2, gt=0, le=1, description="smallest share of the image that a view shows")
    jitter: float = Field(0.4, ge=0, le=1, description="brightness, contrast, saturation; a quarter of it for hue")
    grey: float = Field(0.2, ge=0, le=1, description="probability of a grey view")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a mirrored view; 0 where left and right differ")
    classifier_epochs: int = Field(10, ge=1, description="of the linear classifier")
    classifier_batch_size: int = Field(512, ge=1, description="of the linear classifier")
    classifier_learning_rate: float = Field(5.0, gt=0, description="of the linear classifier; falls by a cosine")
    poison_weight: float = Field(
        0.001, ge=0, le=0.1, description="of the cross-entropy of D_p, which is raised and has no bound: keep it small"
    )

    def train(
        self, network: Network, data: ImageSet, engine: Engine, *, monitor: tuple[ImageSet, ImageSet] | None = None
    ) -> Trained:
        """Train a classifier in place; see `Trainer.train`. Of `monitor`, only the test images are used.

        Raises:
            ConfigError: The network is no classifier with a linear head.
            DataError: Labels are missing, of one class, or not the network's, images have another size or do not fill
                a batch, or fewer than two classes would be called clean.
        """
        labels, linear = self._check(network, data)
        split, scores, split_history = self._split(network, data, engine)
        images = DeviceImages(data, engine.device)
        extractor = feature_extractor(network)
        projector = _projector(linear.in_features, self.dimensions, engine)
        views = SSLViews(
            network.spec.image_size, min_scale=self.min_crop_scale, jitter=self.jitter, grey=self.grey, flip=self.flip
        )
        history = {
            "split": split_history,
            "extractor": self._extract(nn.Sequential(extractor, projector), images, split, views, engine),
            "classifier": self._classify(extractor, linear, images, split, views, engine, monitor),
        }
        network.backbone.load_state_dict(extractor.backbone.state_dict(), strict=False)  # all but the head
        network.to(engine.device).eval()
        return Trained(
            network,
            history,
            {f"{name}_images": float(count) for name, count in split.counts.items()},
            findings=_findings(split, labels),
            filterings={"split": Filtering(scores.values, split.clean)},
        )

    def _check(self, network: Network, data: ImageSet) -> tuple[Tensor, nn.Linear]:
        """The labels, and the layer that gives the logits, where network and data fit."""
        if network.spec.kind != "classifier":
            raise ConfigError(f"{self.name} trains classifiers, and this is an {network.spec.kind}.")
        labels = training_labels(data, self.name, classes=network.spec.output_size)
        if data.image_size != network.spec.image_size:
            raise DataError(
                f"{self.name}: images have {data.image_size} px, the network takes {network.spec.image_size} px."
            )
        if len(data) < self.batch_size:
            raise DataError(
                f"{self.name}: {len(data)} images of {data.uri or 'the data'} do not fill one batch of "
                f"{self.batch_size}. Lower batch_size, or give more images."
            )
        linear = network.backbone.get_submodule(logit_layer(network))
        if not isinstance(linear, nn.Linear):
            raise ConfigError(
                f"{self.name} trains features and a linear layer apart, and {network.spec.architecture} has no linear "
                "head. Choose another --arch."
            )
        return labels, linear

    def _split(self, network: Network, data: ImageSet, engine: Engine) -> tuple[Split, Scores, History]:
        """Score the images in a network of their own, which has just learned what is easiest: the backdoor."""
        beginner = Supervised(
            epochs=self.split_epochs,
            batch_size=self.split_batch_size,
            learning_rate=self.split_learning_rate,
            crop_padding=0,
            flip=0.0,
        ).train(copy.deepcopy(network), data, engine)
        fct = FCT(
            draws=self.draws,
            decision=self.decision,
            clean_share=self.clean_share,
            poisoned_share=self.poisoned_share,
            per_class=self.per_class,
        )
        scores = fct.score(beginner.network, data, engine)
        split = fct.split(scores)
        labels = data.require_labels(self.name)
        known = len(torch.unique(labels[split.clean]))
        if known < 2:
            raise DataError(
                f"{self.name}: the {int(split.clean.sum())} images that are called clean are of {known} class(es), "
                f"and a classifier needs two. Raise clean_share (now {self.clean_share}), or give more images."
            )
        return split, scores, beginner.history["supervised"]

    def _extract(
        self, projected: nn.Module, images: DeviceImages, split: Split, views: SSLViews, engine: Engine
    ) -> History:
        """First stage: the features."""
        labels, clean = _on(images, split.clean)

        def loss(module: nn.Module, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            rows, pixels = indices.to(images.device), images.pixels(indices)
            first, second = module(torch.cat([views(pixels, generator), views(pixels, generator)])).chunk(2)
            return {
                "loss": semi_supervised_contrast(
                    first, second, labels[rows], clean[rows], temperature=self.temperature, positives=self.positives
                )
            }

        per_epoch = len(images) // self.batch_size
        return engine.fit(
            "extractor",
            projected,
            loss,
            images=len(images),
            batch_size=self.batch_size,
            epochs=self.epochs,
            drop_last=True,
            optimizer=lambda parameters: SGD(
                parameters, lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
            ),
            scheduler=lambda optimizer, steps: CosineWarmupScheduler(
                optimizer, warmup_epochs=min(self.warmup_epochs * per_epoch, math.ceil(steps / 10)), max_epochs=steps
            ),
        )

    def _classify(
        self,
        extractor: Network,
        linear: nn.Linear,
        images: DeviceImages,
        split: Split,
        views: SSLViews,
        engine: Engine,
        monitor: tuple[ImageSet, ImageSet] | None,
    ) -> History:
        """Second stage: a linear layer on the features of D_c and D_p."""
        labels, poisoned = _on(images, split.poisoned)
        used = torch.nonzero(~split.uncertain).flatten()
        extractor.to(engine.device).eval()

        def loss(module: nn.Module, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            rows = used[indices].to(images.device)
            with torch.no_grad(), engine.fabric.autocast():
                features = extractor(views(images.pixels(rows), generator))
            return {
                "loss": mixed_cross_entropy(module(features), labels[rows], poisoned[rows], weight=self.poison_weight)
            }

        return engine.fit(
            "classifier",
            linear,
            loss,
            images=len(used),
            batch_size=self.classifier_batch_size,
            epochs=self.classifier_epochs,
            optimizer=lambda parameters: SGD(parameters, lr=self.classifier_learning_rate, momentum=self.momentum),
            scheduler=lambda optimizer, steps: CosineAnnealingLR(optimizer, T_max=steps),
            watch=_accuracy_on(monitor[1], extractor, engine) if monitor else None,
        )


def _on(images: DeviceImages, group: Tensor) -> tuple[Tensor, Tensor]:
    """Labels of all images, and who is in a group, where the images are."""
    assert images.labels is not None  # train() has seen to it
    return images.labels, group.to(images.device)


def _projector(width: int, dimensions: int, engine: Engine) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(engine.seed)  # layers are initialised by torch's global generator
        projector: nn.Module = SimCLRProjectionHead(width, width, dimensions, batch_norm=False)
    return projector


def _accuracy_on(test: ImageSet, extractor: Network, engine: Engine) -> Watch:
    images, labels = DeviceImages(test, engine.device), test.require_labels("the monitor")

    def watch(linear: nn.Module) -> tuple[dict[str, float], str | None]:
        predicted = engine.forward(nn.Sequential(extractor, linear), images.pixels, len(images)).argmax(dim=1)
        return {"test_accuracy": float((predicted == labels).float().mean())}, None

    return watch


def _findings(split: Split, labels: Tensor) -> list[Finding]:
    """What the user should know of the split: poison by the scores, and classes that the classifier cannot know."""
    found = []
    missing = sorted(set(labels.tolist()) - set(labels[split.clean].tolist()))
    if missing:
        message = (
            f"No image of class {', '.join(map(str, missing))} is called clean: the classifier cannot know it. Set "
            "per_class=true, or raise clean_share."
        )
        found.append(
            Finding(
                rule="d-st-missing-class", severity=Severity.WARNING, message=message, evidence={"classes": missing}
            )
        )
    message = f"{split.reason}; {split.counts['clean']} images are called clean, and only their labels are trusted."
    found.append(Finding(rule="d-st-split", severity=Severity.NOTE, message=message, evidence=split.counts))
    return found
