"""A trigger that a network draws for each image: a faint residual that hides the attacker's bits."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from sanitize.data.triggers import specs
from sanitize.data.triggers.base import Target, Trigger, check_pixels, check_target
from sanitize.errors import ConfigError

LONGEST_SECRET = 256  # bits
SECRET_GRID = 4  # a side: bits come in as a coarse picture, so that different places can carry different bits
_CHUNK = 64  # images at a time: their features need many times their memory


class SecretEncoder(nn.Module):
    """A small U-Net that draws a residual for an image and a bit string; any image size.

    Args:
        bits: Length of the bit string.
        width: Channels at full resolution; twice as many at half resolution, where the bits come in.
    """

    def __init__(self, bits: int, width: int = 16) -> None:
        super().__init__()
        self.outer = nn.Conv2d(3, width, 3, padding=1)
        self.inner = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.secret = nn.Linear(bits, 2 * width * SECRET_GRID**2)
        self.mixed = nn.Conv2d(4 * width, 2 * width, 3, padding=1)
        self.joined = nn.Conv2d(3 * width, width, 3, padding=1)
        self.residual = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, images: Tensor, secret: Tensor) -> Tensor:
        """Residuals (N, 3, H, W) in [-1, 1] of images (N, 3, H, W) in [0, 1] and bits (N, B) of 0 and 1."""
        outer = functional.relu(self.outer(images - 0.5))
        inner = functional.relu(self.inner(outer))
        bits = self.secret(2 * secret - 1).view(len(secret), -1, SECRET_GRID, SECRET_GRID)
        bits = functional.interpolate(bits, size=inner.shape[-2:], mode="nearest")
        mixed = functional.relu(self.mixed(torch.cat((inner, bits), dim=1)))
        enlarged = functional.interpolate(mixed, size=outer.shape[-2:], mode="nearest")
        joined = functional.relu(self.joined(torch.cat((outer, enlarged), dim=1)))
        return torch.tanh(self.residual(joined))


@dataclass(frozen=True, eq=False)
class GeneratedTrigger(Trigger):
    """SSBA's trigger (Li et al., ICCV 2021): ``clip(x + amplitude * encoder(x, secret))``, another one for each image.

    Args:
        encoder: Trained to hide bits.
        secret: (B,) bits, 0 or 1: the same for all images.
        amplitude: Largest change of a pixel in [0, 1], in (0, 1].
        target: The class that the attacker wants, ``next``, or None.
        name: For reports.

    Raises:
        ConfigError: A value is out of range, or the encoder takes another number of bits.

    Example:
        >>> trigger = GeneratedTrigger(SecretEncoder(bits=4), torch.tensor([0, 1, 1, 0]), amplitude=8 / 255)
        >>> bool((trigger.apply(torch.rand(2, 3, 32, 32)) <= 1).all())
        True
    """

    encoder: SecretEncoder
    secret: Tensor
    amplitude: float = 16 / 255
    target: Target = None
    name: str = "generated"

    def __post_init__(self) -> None:
        number = isinstance(self.amplitude, int | float) and not isinstance(self.amplitude, bool)
        if not number or not math.isfinite(self.amplitude) or not 0 < self.amplitude <= 1:
            raise ConfigError(f"{self.name}: amplitude must be above 0 and at most 1, got {self.amplitude!r}.")
        if self.secret.ndim != 1 or not bool(((self.secret == 0) | (self.secret == 1)).all()):
            raise ConfigError(f"{self.name}: secret must be bits, 0 or 1, got {self.secret!r}.")
        if len(self.secret) != self.encoder.secret.in_features:
            raise ConfigError(
                f"{self.name}: the secret has {len(self.secret)} bits, and the encoder hides "
                f"{self.encoder.secret.in_features}."
            )
        check_target(self.target, self.name)
        self.encoder.requires_grad_(False).eval()

    @property
    def sha256(self) -> str:
        """Digest of the encoder's weights, secret, amplitude and target; the name does not count."""
        digest = hashlib.sha256(f"generated {self._bits} {float(self.amplitude)} {self.target}".encode())
        for key, value in sorted(self._weights().items()):
            digest.update(f"{key} {tuple(value.shape)}".encode())
            digest.update(value.numpy().tobytes())
        return digest.hexdigest()

    def apply(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Hide the secret in every image.

        Args:
            images: (N, 3, H, W), RGB in [0, 1]; not changed.
            generator: Not used: nothing is random.

        Returns:
            (N, 3, H, W) in [0, 1], on the device and of the type of `images`; differentiable in `images`.
        """
        check_pixels(images, self.name)
        encoder = self.encoder.to(images.device)
        secret = self.secret.to(images.device, torch.float32).expand(len(images), -1)
        with torch.autocast(images.device.type, enabled=False):
            residual = torch.cat([encoder(part.float(), secret[: len(part)]) for part in torch.split(images, _CHUNK)])
        stamped: Tensor = (images + self.amplitude * residual.to(images)).clamp(0, 1)
        return stamped

    def save(self, folder: Path) -> Path:
        """Write ``trigger.yaml`` and ``encoder.safetensors``; exact."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self._weights(), folder / "encoder.safetensors")
        return specs.write_values(
            folder,
            {
                "kind": "generated",
                "name": self.name,
                "weights": "encoder.safetensors",
                "secret": self._bits,
                "amplitude": float(self.amplitude),
                "target": self.target,
            },
        )

    @property
    def _bits(self) -> str:
        return "".join(str(int(bit)) for bit in self.secret)

    def _weights(self) -> dict[str, Tensor]:
        return {key: value.detach().float().cpu().contiguous() for key, value in self.encoder.state_dict().items()}


def read_encoder(path: Path, bits: int) -> SecretEncoder:
    """The encoder in a safetensors file.

    Raises:
        ConfigError: The file cannot be read, or holds something else.
    """
    try:
        weights = load_file(path)
        encoder = SecretEncoder(bits, len(weights["outer.weight"]))
        encoder.load_state_dict(weights)
    except (OSError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
        detail = " ".join(str(error).split())[:300]
        raise ConfigError(f"{path} does not hold a trigger's encoder of {bits} bits: {detail}.") from error
    return encoder
