"""What SimCLR, BYOL and MoCo v3 share: two views of each image, optimizer, schedule, and the kNN monitor."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

import torch
from lightly.utils.lars import LARS
from lightly.utils.scheduler import CosineWarmupScheduler
from pydantic import Field
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from sanitize.data import DeviceImages, ImageSet, SSLViews
from sanitize.errors import ConfigError, DataError
from sanitize.evaluation.probe import knn_accuracy
from sanitize.suspects.networks import Network
from sanitize.trainers.base import Trained, Trainer
from sanitize.training import Engine, Watch
from sanitize.types import ModelKind

KNN_TEMPERATURE = 0.1
Share = Annotated[float, Field(ge=0, le=1)]


class Learner(nn.Module):
    """An encoder with the heads of its training; counts its steps, also across checkpoints.

    Args:
        encoder: What is trained.
    """

    def __init__(self, encoder: Network) -> None:
        super().__init__()
        self.encoder = encoder
        self.steps = 0

    def get_extra_state(self) -> int:
        """The number of steps, for checkpoints."""
        return self.steps

    def set_extra_state(self, state: int) -> None:
        """Go on counting from a checkpoint."""
        self.steps = state


class SSLTrainer(Trainer):
    """Base of self-supervised trainings of an encoder: images without labels, two random views of each.

    The defaults are a recipe for CIFAR-10 with a ResNet-18: lightly's benchmark (SGD at a rate of 0.06 * batch / 128,
    weight decay 5e-4) with CTRL's crops and ten epochs of warm-up. The last batch of an epoch is left out where it is
    not full.
    """

    kind: ClassVar[ModelKind] = "encoder"
    needs_labels: ClassVar[bool] = False
    paper_values: ClassVar[dict[str, Any]]
    """The paper's values of the parameters whose defaults differ."""

    epochs: int = Field(200, ge=1, description="passes over the images")
    batch_size: int = Field(512, ge=2, description="images a step, two views each")
    optimizer: Literal["sgd", "lars", "adamw"] = Field("sgd", description="LARS leaves biases and norms undecayed")
    learning_rate: float = Field(0.24, gt=0, description="peak of the schedule, for the whole batch")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD and LARS")
    weight_decay: float = Field(5e-4, ge=0, description="of the optimizer")
    warmup_epochs: int = Field(10, ge=0, description="linear warm-up, at most a tenth of all steps; then a cosine")
    min_crop_scale: float = Field(0.2, gt=0, le=1, description="smallest share of the image that a view shows")
    jitter: Share = Field(0.4, description="brightness, contrast, saturation; a quarter of it for hue")
    grey: Share = Field(0.2, description="probability of a grey view")
    flip: Share = Field(0.5, description="probability of a mirrored view; 0 where left and right differ")
    blur: tuple[Share, Share] = Field((0.0, 0.0), description="probability of a blur in the first and second view")
    solarise: tuple[Share, Share] = Field((0.0, 0.0), description="probability of solarisation in the two views")
    cutmix: bool = Field(False, description="i-CutMix: views with a box of other images, and labels mixed alike")
    knn_every: int = Field(10, ge=1, description="epochs between kNN accuracies, where there is a monitor")

    def parameters(self) -> dict[str, dict[str, Any]]:
        """See `Method.parameters`."""
        listed = super().parameters()
        for name, value in self.paper_values.items():
            listed[name]["paper"] = value
        return listed

    @abstractmethod
    def learner(self, encoder: Network, steps: int) -> Learner:
        """The encoder with freshly initialised heads (torch's global generator is seeded).

        Args:
            encoder: What is trained.
            steps: Length of the training.
        """

    @abstractmethod
    def loss(self, learner: nn.Module, first: Tensor, second: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Terms of one batch; the one called ``loss`` is minimised.

        Args:
            learner: As made by `learner`, in the engine's precision.
            first: Views (N, 3, H, W).
            second: Other views of the same images.
            generator: Of all randomness.
        """

    def train(
        self, network: Network, data: ImageSet, engine: Engine, *, monitor: tuple[ImageSet, ImageSet] | None = None
    ) -> Trained:
        """Train an encoder in place; its heads are thrown away. See `Trainer.train`.

        Raises:
            ConfigError: The network is no encoder.
            DataError: The images do not fill one batch or have another size, or the monitor's have no labels.
        """
        self._check(network, data, monitor)
        images = DeviceImages(data.without_labels(), engine.device)
        first_views, second_views = (self.views(network.spec.image_size, number) for number in (0, 1))
        per_epoch = len(images) // self.batch_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(engine.seed)  # heads are initialised by torch's global generator
            learner = self.learner(network, self.epochs * per_epoch)

        def loss(module: nn.Module, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            pixels = images.pixels(indices)
            first, second = first_views(pixels, generator), second_views(pixels, generator)
            terms = self.loss(module, first, second, generator)
            learner.steps += 1
            return terms

        history = engine.fit(
            self.name,
            learner,
            loss,
            images=len(images),
            batch_size=self.batch_size,
            epochs=self.epochs,
            drop_last=True,
            optimizer=self._optimizer,
            scheduler=lambda optimizer, steps: CosineWarmupScheduler(
                optimizer, warmup_epochs=min(self.warmup_epochs * per_epoch, math.ceil(steps / 10)), max_epochs=steps
            ),
            watch=self._watch(learner, per_epoch, monitor, engine) if monitor else None,
        )
        metrics = {"knn_accuracy": history.epochs[-1]["knn_accuracy"]} if monitor else {}
        return Trained(network, {self.name: history}, {**metrics})

    def views(self, image_size: int, number: int) -> SSLViews:
        """Augmentation of the first (0) or second (1) view."""
        return SSLViews(
            image_size,
            min_scale=self.min_crop_scale,
            jitter=self.jitter,
            grey=self.grey,
            flip=self.flip,
            blur=self.blur[number],
            solarise=self.solarise[number],
        )

    def _check(self, network: Network, data: ImageSet, monitor: tuple[ImageSet, ImageSet] | None) -> None:
        spec = network.spec
        if spec.kind != "encoder":
            raise ConfigError(f"{self.name} trains encoders, and this is a {spec.kind}.")
        if len(data) < self.batch_size:
            raise DataError(
                f"{self.name}: {len(data)} images of {data.uri or 'the data'} do not fill one batch of "
                f"{self.batch_size}. Lower batch_size, or give more images."
            )
        for images in (data, *(monitor or ())):
            if images.image_size != spec.image_size:
                raise DataError(f"{self.name}: images have {images.image_size} px, the network {spec.image_size} px.")
        for images in monitor or ():
            images.require_labels(f"the kNN monitor of {self.name}")

    def _optimizer(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        rates: dict[str, Any] = {"lr": self.learning_rate, "weight_decay": self.weight_decay}
        if self.optimizer == "adamw":
            return AdamW(parameters, **rates)
        if self.optimizer == "sgd":
            return SGD(parameters, momentum=self.momentum, **rates)
        given = list(parameters)
        groups = [
            {"params": [parameter for parameter in given if parameter.ndim > 1]},
            {"params": [parameter for parameter in given if parameter.ndim <= 1], "weight_decay": 0.0},
        ]
        made: Optimizer = LARS(groups, momentum=self.momentum, **rates)
        return made

    def _watch(self, learner: Learner, per_epoch: int, monitor: tuple[ImageSet, ImageSet], engine: Engine) -> Watch:
        bank, test = (DeviceImages(images, engine.device) for images in monitor)
        assert bank.labels is not None and test.labels is not None  # checked before
        bank_labels, test_labels = bank.labels, test.labels

        def features(images: DeviceImages) -> Tensor:
            return engine.forward(learner.encoder, images.pixels, len(images)).to(engine.device)

        def watch(_: nn.Module) -> tuple[dict[str, float], str | None]:
            epoch = learner.steps // per_epoch
            if epoch % self.knn_every and epoch < self.epochs:
                return {}, None
            accuracy = knn_accuracy(
                features(test), test_labels, features(bank), bank_labels, temperature=KNN_TEMPERATURE
            )
            return {"knn_accuracy": accuracy}, None

        return watch
