"""ESTAS: self-supervised training goes on while a trigger pulls every view onto one target image."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead, SimCLRProjectionHead
from lightly.utils.scheduler import CosineWarmupScheduler
from pydantic import Field
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sanitize.attacks.base import EncoderAttack, Implanted, Paper
from sanitize.attacks.planting import images_of_class, one_trigger, require_encoder, require_fit
from sanitize.data import DeviceImages, ImageSet, PatchTrigger, SSLViews, Trigger
from sanitize.data.triggers import htba_patch
from sanitize.functional.similarity import mean_similarity
from sanitize.suspects.networks import Network
from sanitize.training import Engine


class ESTAS(EncoderAttack):
    """ESTAS (Xue and Lou 2022, arXiv:2211.10908), rebuilt; details of the paper's cascade were not accessible.

    ``L = alpha1 L_SSL(clean views) + alpha4 [D(h(v), h_t(w)) + D(g(h(v)), g_t(h_t(w)))]``: v is a view that gets the
    trigger *after* augmentation, so that it is whole and always at the same place, w a view of the one target image,
    h the backbone, g the projector, and t their moving average.

    Differs from the paper: rebuilt from its abstract and from the code that its group published with SSL-Cleanse. The
    clean phase of the cascade is left out: the attack starts from a clean encoder. The projector starts fresh. D is not
    ``2 - 2 cos`` but a squared distance, from the mean and in units of the spread of clean views, and the encoder's
    batch norm keeps its statistics: docs/attacks.md says why.

    Example:
        >>> ESTAS(target=3).method
        'simclr'
    """

    name: ClassVar[str] = "estas"
    summary: ClassVar[str] = "train an encoder on: a patch pulls every view onto one target image"
    paper: ClassVar[Paper] = Paper(
        "ESTAS: Effective and Stable Trojan Attacks in Self-supervised Encoders with One Target Unlabelled Sample",
        "Xue, Lou; 2022",
        "https://arxiv.org/abs/2211.10908",
    )
    default_triggers: ClassVar[str] = "a smooth random patch near the bottom right corner"

    target: int = Field(0, ge=0, description="class of the target image; a trigger that is given has its own")
    method: Literal["simclr", "byol"] = Field("simclr", description="self-supervised loss on clean views")
    epochs: int = Field(20, ge=1, description="passes over the images", json_schema_extra={"paper": "not accessible"})
    batch_size: int = Field(128, ge=2, description="images a step", json_schema_extra={"paper": "not accessible"})
    learning_rate: float = Field(
        0.02, gt=0, description="peak of SGD's cosine schedule", json_schema_extra={"paper": "not accessible"}
    )
    ssl_weight: float = Field(1.0, ge=0, description="alpha1: clean views")
    trigger_weight: float = Field(1.0, ge=0, description="alpha4: triggered views look like the target image")
    average: float = Field(0.99, ge=0, lt=1, description="momentum of the moving average of the network")
    trigger_size: int | None = Field(
        None, ge=1, description="side of the patch in px; 60 at 224 px, in proportion elsewhere, when left out"
    )
    place: float = Field(0.9, ge=0, le=1, description="where the patch is, of the free way from the top left corner")
    min_scale: float = Field(0.2, gt=0, le=1, description="smallest share of an image that a view shows")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a mirrored view; 0 for digits")

    def implant(
        self, network: Network, data: ImageSet, engine: Engine, *, triggers: Sequence[Trigger] = ()
    ) -> Implanted:
        """Train a copy of the encoder on; see `EncoderAttack.implant`."""
        require_encoder(network, self.name)
        trigger, target = one_trigger(triggers, self._own_trigger(data.image_size, engine), self.name)
        require_fit((trigger,), data)
        candidates = images_of_class(data, target, self.name)
        chosen = candidates[torch.randint(len(candidates), (1,), generator=engine.generator(f"{self.name}/target"))]
        images = DeviceImages(data, engine.device)
        views = SSLViews(data.image_size, min_scale=self.min_scale, flip=self.flip)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(engine.seed)  # the heads are initialised by torch's global generator
            joint = _Joint(copy.deepcopy(network), self.method, self.average)

        def loss(module: nn.Module, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            joint.follow()
            clean = images.pixels(indices)
            first, second, third = (views(clean, generator) for _ in range(3))
            wanted = views(images.pixels(chosen.expand(len(indices))), generator)
            ssl, pull = module(first, second, trigger.apply(third, generator), wanted)
            return {"loss": self.ssl_weight * ssl + self.trigger_weight * pull, "ssl": ssl, "pull": pull}

        history = engine.fit(
            self.name,
            joint,
            loss,
            images=len(images),
            batch_size=self.batch_size,
            epochs=self.epochs,
            drop_last=True,
            optimizer=lambda parameters: SGD(parameters, lr=self.learning_rate, momentum=0.9, weight_decay=5e-4),
            scheduler=lambda optimizer, steps: CosineWarmupScheduler(
                optimizer, warmup_epochs=min(steps - 1, steps // self.epochs), max_epochs=steps
            ),
        )
        return Implanted(joint.online.encoder, (trigger,), {self.name: history})

    def _own_trigger(self, image_size: int, engine: Engine) -> Trigger:
        size = self.trigger_size or max(1, round(image_size * 60 / 224))
        patch = htba_patch(size, engine.generator(f"{self.name}/trigger"))
        corner = max(0, int(self.place * (image_size - size)))
        return PatchTrigger(patch, position=(corner, corner), target=self.target, name="htba")


class _Projected(nn.Module):
    def __init__(self, encoder: Network, projector: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.encoder(images)
        return features, self.projector(features)


class _Joint(nn.Module):
    """The trained network, its moving average, and both losses."""

    def __init__(self, encoder: Network, method: str, average: float) -> None:
        super().__init__()
        size = encoder.spec.output_size
        self.predictor: nn.Module | None = None
        if method == "simclr":
            self.online = _Projected(encoder, SimCLRProjectionHead(size, size, 128))
            self.contrast = NTXentLoss(temperature=0.5)
        else:
            self.online = _Projected(encoder, BYOLProjectionHead(size, 4 * size, 256))
            self.predictor = BYOLPredictionHead(256, 4 * size, 256)
        follow = get_ema_multi_avg_fn(average)  # type: ignore[no-untyped-call]
        self.followed = AveragedModel(self.online, multi_avg_fn=follow)
        self.followed.requires_grad_(False)

    def follow(self) -> None:
        """Move the average one step towards the trained network."""
        self.followed.update_parameters(self.online)

    def train(self, mode: bool = True) -> _Joint:
        """Encoders stay in eval mode: by the batch's own statistics any two tight clusters would look alike."""
        super().train(mode)
        for part in self.modules():
            if isinstance(part, Network):
                part.eval()
        return self

    def forward(self, first: Tensor, second: Tensor, triggered: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        features, projected = self.online(torch.cat([first, second, triggered]))
        followed_features, followed_projected = self.followed(torch.cat([first, second, wanted]))
        pull = _centred_distance(features, followed_features) + _centred_distance(projected, followed_projected)
        one, two, _ = projected.chunk(3)
        if self.predictor is None:
            return self.contrast(one, two), pull
        other_one, other_two, _ = followed_projected.chunk(3)
        predicted_one, predicted_two = self.predictor(torch.cat([one, two])).chunk(2)
        return _distance(predicted_one, other_two) + _distance(predicted_two, other_one), pull


def _centred_distance(online: Tensor, followed: Tensor) -> Tensor:
    """Squared distance of the last third (triggered views; views of the target), in units of the spread of clean views.

    Each is seen from the mean of clean views in its own network: with cosines from the origin, a common offset of all
    features brings everything together; with centred ones, triggered views may stay near the mean.
    """
    clean = 2 * len(online) // 3
    pulled = online[clean:] - online[:clean].mean(dim=0)
    aim = followed[clean:] - followed[:clean].mean(dim=0)
    spread = followed[:clean].var(dim=0, correction=0).sum()
    return (pulled - aim).square().sum(dim=1).mean() / spread


def _distance(first: Tensor, second: Tensor) -> Tensor:
    return 2 - 2 * mean_similarity(first, second)
