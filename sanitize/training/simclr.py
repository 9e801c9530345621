"""SimCLR (Chen et al., ICML 2020): self-supervised training of an encoder on images without labels."""

from __future__ import annotations

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.utils.scheduler import CosineWarmupScheduler
from torch import Tensor, nn
from torch.optim import SGD

from sanitize.data import DeviceImages, ImageSet, SSLViews
from sanitize.suspects.networks import Network
from sanitize.training.engine import Engine, History


class _Projected(nn.Module):
    def __init__(self, encoder: Network, dimensions: int) -> None:
        super().__init__()
        self.encoder = encoder
        size = encoder.spec.output_size
        self.projector = SimCLRProjectionHead(size, size, dimensions)

    def forward(self, images: Tensor) -> Tensor:
        projected: Tensor = self.projector(self.encoder(images))
        return projected


def train_simclr(
    encoder: Network,
    data: ImageSet,
    engine: Engine,
    *,
    epochs: int,
    batch_size: int = 256,
    learning_rate: float = 0.06,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    temperature: float = 0.5,
    dimensions: int = 128,
    warmup_epochs: int = 1,
    views: SSLViews | None = None,
) -> History:
    """Train an encoder in place; the projector is thrown away.

    Args:
        encoder: Trained from the weights that it has.
        data: Images; labels are not looked at.
        engine: Device, seed, checkpoints.
        epochs: Passes over the images, cosine schedule over all of them.
        batch_size: Images a step, two views each.
        learning_rate: Peak of the schedule, for SGD.
        momentum: Of SGD.
        weight_decay: Of SGD.
        temperature: Of NT-Xent.
        dimensions: Output of the projector.
        warmup_epochs: Linear warm-up.
        views: Augmentations; those of CTRL's CIFAR recipe when left out.
    """
    images = DeviceImages(data, engine.device)
    augment = views or SSLViews(data.image_size)
    criterion = NTXentLoss(temperature=temperature)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(engine.seed)  # the projector is initialised by torch's global generator
        projected = _Projected(encoder, dimensions)

    def loss(module: nn.Module, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        pixels = images.pixels(indices)
        both = torch.cat([augment(pixels, generator), augment(pixels, generator)])
        first, second = module(both).chunk(2)
        return {"loss": criterion(first, second)}

    steps_per_epoch = max(1, len(images) // batch_size)
    return engine.fit(
        "simclr",
        projected,
        loss,
        images=len(images),
        batch_size=batch_size,
        epochs=epochs,
        drop_last=True,
        optimizer=lambda parameters: SGD(parameters, lr=learning_rate, momentum=momentum, weight_decay=weight_decay),
        scheduler=lambda optimizer, steps: CosineWarmupScheduler(
            optimizer, warmup_epochs=min(warmup_epochs * steps_per_epoch, steps - 1), max_epochs=steps
        ),
    )
