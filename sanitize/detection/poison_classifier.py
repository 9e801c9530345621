"""The poison classifier: small networks that learn what the best candidate triggers look like on other images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from sanitize.data import DeviceImages, ImageSet, SSLViews
from sanitize.detection.features import outputs_into
from sanitize.suspects.networks import Network
from sanitize.suspects.untrained import untrained
from sanitize.training import Engine

CHECK_EVERY = 20  # iterations between two looks at the validation images
STEADY = 10  # looks with the same F1, in whole per cent, that end the training
_EDGE = 10 / 224  # share of the image that pasted triggers keep away from its edge
_SIDES = (2 / 3, 4 / 3)  # of a pasted trigger, in sides of its window
_RATE = 0.02


@dataclass(frozen=True)
class PoisonClassifier:
    """Settings of the ensemble.

    Args:
        architecture: Of each network.
        networks: How many; their logits are averaged.
        iterations: Steps at most.
        batch_size: Images a step, half of them with a trigger.
        forward_batch: Images that are asked about together.
        jitter: Strength of the colour changes.
        grey: Probability of a grey image.
        flip: Probability of a mirrored image.
    """

    architecture: str
    networks: int
    iterations: int
    batch_size: int
    forward_batch: int
    jitter: float
    grey: float
    flip: float

    def classify(
        self,
        data: ImageSet,
        windows: Tensor,
        negative: Tensor,
        validation: tuple[Tensor, Tensor],
        engine: Engine,
        *,
        search: int = 1,
    ) -> Tensor:
        """Train the ensemble and ask it about every image.

        Args:
            data: All images.
            windows: (K, 3, w, w) uint8, the candidate triggers.
            negative: (M,) int64, rows that are taken for clean.
            validation: Rows that are taken for poisoned, and for clean, to stop early.
            engine: Device and seed.
            search: Number of the round, for the names of the stages.

        Returns:
            (N,) float32, probability of poison.
        """
        images = DeviceImages(data, engine.device)
        logits, outputs = torch.zeros(len(data), 2), torch.empty(len(data), 2)
        for number in range(self.networks):
            network = untrained(
                self.architecture,
                kind="classifier",
                image_size=data.image_size,
                normalization="half",
                classes=2,
                seed=engine.seed + number,
            ).to(engine.device)
            stage = "poison-classifier" if search == 1 else f"poison-classifier-round-{search}"
            self._train(f"{stage}-{number + 1}", network, images, windows, negative, validation, engine)
            outputs_into(outputs, network, images, engine, batch_size=self.forward_batch)
            logits += outputs / self.networks
        return logits.softmax(dim=1)[:, 1]

    def _train(
        self,
        stage: str,
        network: Network,
        images: DeviceImages,
        windows: Tensor,
        negative: Tensor,
        validation: tuple[Tensor, Tensor],
        engine: Engine,
    ) -> None:
        side = images.pixels(slice(1)).shape[-1]
        crops = SSLViews(side, min_scale=0.2, jitter=0, grey=0, flip=0)
        colours = SSLViews(side, min_scale=1.0, jitter=self.jitter, grey=self.grey, flip=self.flip)
        triggers = windows.to(engine.device).float() / 255

        def loss(module: nn.Module, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            rows = negative[torch.randint(len(negative), (len(indices),), generator=generator)]
            views = crops(images.pixels(rows), generator)
            poisoned = torch.arange(len(views)) < len(views) // 2
            views[: len(views) // 2] = pasted(views[: len(views) // 2], triggers, generator)
            labels = poisoned.long().to(views.device)
            return {"loss": functional.cross_entropy(module(colours(views, generator)), labels)}

        steady = _Steady(images, *validation)
        engine.fit(
            stage,
            network,
            loss,
            images=CHECK_EVERY * self.batch_size,
            batch_size=self.batch_size,
            epochs=-(-self.iterations // CHECK_EVERY),
            optimizer=lambda parameters: SGD(parameters, lr=_RATE, momentum=0.9, nesterov=True, weight_decay=1e-4),
            scheduler=lambda optimizer, steps: OneCycleLR(optimizer, max_lr=_RATE, total_steps=steps + 1),
            max_steps=self.iterations,
            watch=steady.watch,
            companion=steady,
        )


@dataclass
class _Steady:
    """Stops a training whose F1 on the validation images does not change any more; kept in the checkpoints."""

    images: DeviceImages
    poisoned: Tensor
    clean: Tensor
    seen: list[int] = field(default_factory=list)

    def watch(self, network: nn.Module) -> tuple[dict[str, float], str | None]:
        found, wrong = (
            float((network(self.images.pixels(rows)).argmax(dim=1) == 1).sum()) for rows in (self.poisoned, self.clean)
        )
        f1 = 2 * found / (found + wrong + len(self.poisoned))
        self.seen.append(round(100 * f1))
        steady = len(self.seen) > STEADY and len(set(self.seen[-STEADY:])) == 1
        return {"f1": f1}, f"F1 of {f1:.0%} for {STEADY} looks" if steady else None

    def before_epoch(self, network: nn.Module, generator: torch.Generator) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = list(state["seen"])


def pasted(images: Tensor, triggers: Tensor, generator: torch.Generator) -> Tensor:
    """A random trigger on each image, at a random place; all in one random size.

    Args:
        images: (N, 3, H, H) in [0, 1]; not changed.
        triggers: (K, 3, w, w) in [0, 1], on the same device.
        generator: Of triggers, size and places.

    Returns:
        (N, 3, H, H) in [0, 1].
    """
    side, window = images.shape[-1], triggers.shape[-1]
    share = _SIDES[0] + (_SIDES[1] - _SIDES[0]) * float(torch.rand(1, generator=generator))
    edge = round(_EDGE * side)
    size = max(1, min(round(share * window), side - 2 * edge))
    chosen = torch.randint(len(triggers), (len(images),), generator=generator).to(images.device)
    resized = functional.interpolate(triggers, (size, size), mode="bilinear", antialias=True, align_corners=False)
    places = torch.randint(edge, side - edge - size + 1, (len(images), 2), generator=generator).to(images.device)
    reach = torch.arange(size, device=images.device)
    rows, columns = (place[:, None] + reach for place in places.unbind(dim=1))
    number = torch.arange(len(images), device=images.device)[:, None, None]
    output = images.clone()
    output[number, :, rows[:, :, None], columns[:, None, :]] = resized[chosen].clamp(0, 1).permute(0, 2, 3, 1)
    return output
