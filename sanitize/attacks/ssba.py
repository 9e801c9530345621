"""SSBA: an invisible trigger that differs from image to image, drawn by a network that hides bits."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim import Adam

from sanitize.attacks.base import Paper
from sanitize.attacks.poisoning import LabelledAttack, Stamp
from sanitize.data import DeviceImages, ImageSet
from sanitize.data.triggers import Target
from sanitize.data.triggers.generated import LONGEST_SECRET, SECRET_GRID, GeneratedTrigger, SecretEncoder
from sanitize.training import Engine


class SecretDecoder(nn.Module):
    """Reads the bits again: three convolutions of stride 2 and averages over a 4x4 grid; any image size.

    Args:
        bits: How many.
        width: Channels of the first layer.
    """

    def __init__(self, bits: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for factor in (1, 2, 4):
            layers += [nn.Conv2d(channels, factor * width, 3, stride=2, padding=1), nn.ReLU()]
            channels = factor * width
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(SECRET_GRID), nn.Flatten())
        self.bits = nn.Linear(channels * SECRET_GRID**2, bits)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, B) of the bits in images (N, 3, H, W)."""
        logits: Tensor = self.bits(self.features(images - 0.5))
        return logits


class _Steganography(nn.Module):
    """Encoder and decoder, trained together."""

    def __init__(self, bits: int, width: int, amplitude: float) -> None:
        super().__init__()
        self.encoder = SecretEncoder(bits, width)
        self.decoder = SecretDecoder(bits, width)
        self.amplitude = amplitude

    def forward(self, images: Tensor, secrets: Tensor) -> tuple[Tensor, Tensor]:
        residuals = self.encoder(images, secrets)
        return residuals, self.decoder((images + self.amplitude * residuals).clamp(0, 1))


class SSBA(LabelledAttack):
    """SSBA, also called ISSBA (Li, Li, Wu, Li, He, Lyu; ICCV 2021).

    An encoder learns to hide bit strings in images, together with a decoder that reads them. The attacker then hides
    one string in all poisoned images: what changes depends on the image.

    Differs from the paper: encoder and decoder are small, work at any image size, and are trained here on the data
    that is poisoned, with a bound on each pixel and a squared error of the residual instead of StegaStamp's perceptual
    and adversarial losses, which counts as far as bits are already read; bits are hidden as they are, without an
    error-correcting code.

    Example:
        >>> from sanitize.data import load_images
        >>> attack = SSBA(generator_epochs=1, width=4)
        >>> attack.poison(load_images("digits#0:200"), Engine(device="cpu")).truth.count
        17
    """

    name: ClassVar[str] = "ssba"
    summary: ClassVar[str] = "poison labelled training images: an invisible trigger, another one for each image"
    paper: ClassVar[Paper] = Paper(
        "Invisible Backdoor Attack with Sample-Specific Triggers",
        "Li, Li, Wu, Li, He, Lyu; ICCV 2021",
        "https://arxiv.org/abs/2012.03816",
    )
    default_triggers: ClassVar[str] = "a residual that hides bits, drawn by a network trained on the data"
    takes_triggers: ClassVar[bool] = False

    bits: int = Field(20, ge=1, le=LONGEST_SECRET, description="length of the hidden string")
    amplitude: float = Field(16.0, gt=0, le=255, description="largest change of a pixel, of 255")
    width: int = Field(16, ge=1, description="channels of the encoder at full resolution")
    generator_epochs: int = Field(20, ge=1, description="passes over the clean images to train the encoder")
    generator_learning_rate: float = Field(2e-3, gt=0, description="of Adam")
    generator_batch_size: int = Field(32, ge=1, description="images a step")
    image_weight: float = Field(
        0.5, ge=0, description="of the mean squared residual (1: all pixels at the bound), once bits are read"
    )

    def own_trigger(self, data: ImageSet, target: Target, engine: Engine) -> Stamp:
        """Train the encoder and draw the secret; see `LabelledAttack.own_trigger`."""
        images = DeviceImages(data, engine.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(engine.seed)  # layers are initialised by torch's global generator
            network = _Steganography(self.bits, self.width, self.amplitude / 255)

        def loss(module: nn.Module, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            pixels = images.pixels(indices)
            secrets = torch.randint(2, (len(indices), self.bits), generator=generator).to(pixels)
            residuals, logits = module(pixels, secrets)
            decoding = binary_cross_entropy_with_logits(logits, secrets)
            visibility = residuals.square().mean()
            # From the start on, this term would press the residual to nothing before any bit is read.
            readable = (1 - decoding.detach() / math.log(2)).clamp(min=0)
            return {
                "loss": decoding + self.image_weight * readable * visibility,
                "decoding": decoding,
                "visibility": visibility,
                "bit_accuracy": ((logits > 0) == (secrets > 0.5)).float().mean(),
            }

        history = engine.fit(
            f"{self.name}-generator",
            network,
            loss,
            images=len(images),
            batch_size=self.generator_batch_size,
            epochs=self.generator_epochs,
            optimizer=lambda parameters: Adam(parameters, lr=self.generator_learning_rate),
        )
        secret = torch.randint(2, (self.bits,), generator=engine.generator(f"attack/{self.name}/secret"))
        trigger = GeneratedTrigger(network.encoder.cpu(), secret, self.amplitude / 255, target=target, name="secret")
        return Stamp(trigger, trigger, {f"{self.name}-generator": history})
