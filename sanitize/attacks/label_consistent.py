"""Label-consistent attack (CL): images of one class are made hard to recognise, so that the stamp on them counts."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sanitize.attacks.badnets import GRID
from sanitize.attacks.base import Paper
from sanitize.attacks.poisoning import Stamp
from sanitize.attacks.surrogate import SurrogateAttack
from sanitize.data import DeviceImages, ImageSet, PatchTrigger
from sanitize.data.triggers import Target
from sanitize.errors import ConfigError
from sanitize.training import Engine, History

_CHUNK = 512  # images at a time


class LabelConsistent(SurrogateAttack):
    """CL (Turner, Tsipras, Madry; 2019), the variant with adversarial perturbations.

    Images of the target class are perturbed by untargeted PGD on a clean surrogate, then stamped in all four corners;
    labels are kept. At test time images are stamped only.

    Differs from the paper: bounds and the stamp (the 3x3 grid of BadNets and its mirror images, which lie one pixel
    away from the top and left edges) are those of D-ST; the surrogate is trained here, by standard training, and gets
    the images as it was trained on them.

    Example:
        >>> from sanitize.data import load_images
        >>> attack = LabelConsistent(target=3, rate=0.5, surrogate="small-cnn", surrogate_epochs=1)
        >>> attack.poison(load_images("digits#0:200"), Engine(device="cpu")).truth.count
        10
    """

    name: ClassVar[str] = "cl"
    summary: ClassVar[str] = "poison labelled training images: perturbed images of one class with a stamp, labels kept"
    paper: ClassVar[Paper] = Paper(
        "Label-Consistent Backdoor Attacks", "Turner, Tsipras, Madry; 2019", "https://arxiv.org/abs/1912.02771"
    )
    default_triggers: ClassVar[str] = "a 3x3 grid in all four corners"

    label_mode: Literal["clean-label"] = Field(  # type: ignore[misc]
        "clean-label", description="images of the target class keep their label"
    )
    epsilon: float = Field(8.0, gt=0, le=255, description="largest change of a pixel by PGD, of 255")
    step: float = Field(2.0, gt=0, le=255, description="of PGD, of 255")
    steps: int = Field(4, ge=1, description="of PGD")

    def own_trigger(self, data: ImageSet, target: Target, engine: Engine) -> Stamp:
        """The stamp; see `LabelledAttack.own_trigger`."""
        trigger = four_corners(data.image_size, target)
        return Stamp(trigger, trigger)

    def prepare(
        self, data: ImageSet, chosen: Tensor, stamp: Stamp, engine: Engine
    ) -> tuple[ImageSet, dict[str, History]]:
        """Train the surrogate and perturb the chosen images; see `LabelledAttack.prepare`."""
        surrogate, history = self.train_surrogate(data, engine)
        on_device = DeviceImages(data, engine.device)
        assert on_device.labels is not None  # checked before
        generator = engine.generator(f"attack/{self.name}/pgd")
        images = data.images.clone()
        for indices in torch.split(torch.nonzero(chosen).flatten(), _CHUNK):
            perturbed = pgd(
                surrogate,
                on_device.pixels(indices),
                on_device.labels[indices.to(engine.device)],
                epsilon=self.epsilon / 255,
                step=self.step / 255,
                steps=self.steps,
                generator=generator,
            )
            images[indices] = (perturbed * 255).round().to(torch.uint8).cpu()
        return replace(data, images=images), history


def pgd(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    step: float,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Untargeted projected gradient descent (Madry et al., ICLR 2018) in the L-infinity ball, from a random start.

    Args:
        network: Images in [0, 1] to logits, in eval mode.
        images: (N, 3, H, W) in [0, 1].
        labels: (N,) classes to get away from.
        epsilon: Radius.
        step: Of each step.
        steps: How many.
        generator: Of the start.

    Returns:
        (N, 3, H, W) in [0, 1], at most `epsilon` from `images`.
    """
    low, high = (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1)
    start = torch.rand(images.shape, generator=generator, device=generator.device).to(images)
    perturbed = (images + epsilon * (2 * start - 1)).clamp(low, high)
    for _ in range(steps):
        perturbed.requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(network(perturbed), labels, reduction="sum"), perturbed)
        perturbed = (perturbed.detach() + step * gradient.sign()).clamp(low, high)
    return perturbed


def four_corners(size: int, target: Target) -> PatchTrigger:
    """The grid of BadNets in the bottom right corner, and mirrored at the other corners, there from index 1 on.

    Raises:
        ConfigError: The corners would overlap.
    """
    side = len(GRID)
    if size < 2 * side + 1:
        raise ConfigError(f"stamps in four corners need images of {2 * side + 1} px or more, got {size} px.")
    ends = torch.arange(-side, 0)
    starts = -ends  # the pixel mirrored from index -i is at index i
    patch, mask = torch.zeros(3, size, size), torch.zeros(1, size, size)
    for rows in (ends, starts):
        for columns in (ends, starts):
            patch[:, rows[:, None] % size, columns % size] = torch.tensor(GRID, dtype=torch.float32)
            mask[:, rows[:, None] % size, columns % size] = 1
    return PatchTrigger(patch, mask, position=(0, 0), target=target, name="four-corners")
