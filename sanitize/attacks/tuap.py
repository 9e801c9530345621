"""TUAP: one faint picture that a clean classifier takes for the target, planted as a trigger."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from sanitize.attacks.base import Paper
from sanitize.attacks.poisoning import Stamp
from sanitize.attacks.surrogate import SurrogateAttack
from sanitize.data import DeviceImages, ImageSet, PatchTrigger
from sanitize.data.triggers import Target
from sanitize.errors import DataError
from sanitize.training import Engine, Watch


class Perturbation(nn.Module):
    """One picture that is added to all images, clipped."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.picture = nn.Parameter(torch.zeros(3, size, size))

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] with the picture on them."""
        return (images + self.picture).clamp(0, 1)


class ProjectedSignDescent(Optimizer):
    """Steps of fixed size along the sign of the gradient (FGSM), projected on the L-infinity ball around 0."""

    def __init__(self, parameters: Iterable[nn.Parameter], step: float, radius: float) -> None:
        super().__init__(parameters, {"step": step, "radius": radius})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of every parameter."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(group["step"] * parameter.grad.sign()).clamp_(-group["radius"], group["radius"])


class TUAP(SurrogateAttack):
    """A targeted universal adversarial perturbation as trigger (Zhao et al., CVPR 2020; images instead of videos).

    A clean surrogate is trained. A picture v within an L-infinity ball is then moved until the surrogate takes
    ``clip(x + v)`` for the target on most held-out training images (after Moosavi-Dezfooli et al., CVPR 2017). With
    ``label_mode="clean-label"`` it is put on images of the target class, as in the paper, else on others, relabelled.

    Differs from the paper and from BackdoorBox: a step is one FGSM step for all images of a batch that do not yet
    reach the target, not one minimal step an image; the stop looks at *targeted* success, on training images that v
    was not made from.

    Example:
        >>> from sanitize.data import load_images
        >>> attack = TUAP(surrogate="small-cnn", surrogate_epochs=1, epochs=1)
        >>> poisoned = attack.poison(load_images("digits#0:200"), Engine(device="cpu"))
        >>> bool(poisoned.triggers[0].patch.abs().max() <= 8 / 255)
        True
    """

    name: ClassVar[str] = "tuap"
    summary: ClassVar[str] = "poison labelled training images: a faint picture that already fools a clean classifier"
    paper: ClassVar[Paper] = Paper(
        "Clean-Label Backdoor Attacks on Video Recognition Models",
        "Zhao, Ma, Zheng, Bailey, Chen, Jiang; CVPR 2020",
        "https://arxiv.org/abs/2003.03030",
    )
    default_triggers: ClassVar[str] = "a universal adversarial perturbation of a surrogate"
    takes_triggers: ClassVar[bool] = False

    label_mode: Literal["all-to-one", "clean-label"] = Field(  # type: ignore[misc]
        "all-to-one", description="which images are poisoned, and their labels"
    )
    epsilon: float = Field(8.0, gt=0, le=255, description="largest change of a pixel, of 255")
    step: float = Field(1.0, gt=0, le=255, description="of the perturbation, of 255")
    epochs: int = Field(20, ge=1, description="passes over the images that it is made from, at most")
    batch_size: int = Field(64, ge=1, description="images a step")
    images: int = Field(1000, ge=2, description="training images of other classes; half of them are held out")
    success: float = Field(0.8, gt=0, le=1, description="share of held-out images at the target that is enough")

    def own_trigger(self, data: ImageSet, target: Target, engine: Engine) -> Stamp:
        """Train the surrogate, then the perturbation; see `LabelledAttack.own_trigger`.

        Raises:
            DataError: Fewer than two images are of other classes.
        """
        assert isinstance(target, int)  # the label modes of this attack have one
        labels = data.require_labels(self.name)
        others = torch.nonzero(labels != target).flatten()
        if len(others) < 2:
            raise DataError(f"{self.name} needs two images or more that are not of the target class {target}.")
        order = torch.randperm(len(others), generator=engine.generator(f"attack/{self.name}/images"))
        used = others[order[: self.images]]
        held_out, made_from = used[: len(used) // 2], used[len(used) // 2 :]
        surrogate, history = self.train_surrogate(data, engine)
        images = DeviceImages(data, engine.device)
        perturbation = Perturbation(data.image_size)

        def loss(module: nn.Module, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            logits = surrogate(module(images.pixels(made_from[indices])))
            missed = (logits.argmax(dim=1) != target).float()
            wanted = torch.full((len(indices),), target, device=logits.device)
            pushed = (cross_entropy(logits, wanted, reduction="none") * missed).sum()
            return {"loss": pushed / len(indices), "success": 1 - missed.mean()}

        history[self.name] = engine.fit(
            self.name,
            perturbation,
            loss,
            images=len(made_from),
            batch_size=self.batch_size,
            epochs=self.epochs,
            optimizer=lambda parameters: ProjectedSignDescent(parameters, self.step / 255, self.epsilon / 255),
            watch=self._watch(surrogate, images, held_out, target, engine),
        )
        picture = perturbation.picture.detach().cpu()
        trigger = PatchTrigger(picture, mode="add", position=(0, 0), target=target, name="tuap")
        return Stamp(trigger, trigger, history)

    def _watch(
        self, surrogate: nn.Module, images: DeviceImages, held_out: Tensor, target: int, engine: Engine
    ) -> Watch:
        def watch(perturbation: nn.Module) -> tuple[dict[str, float], str | None]:
            chain = nn.Sequential(perturbation, surrogate)
            logits = engine.forward(chain, lambda indices: images.pixels(held_out[indices]), len(held_out))
            reached = float((logits.argmax(dim=1) == target).float().mean())
            enough = f"{reached:.1%} of held-out images reach the target" if reached >= self.success else None
            return {"held_out_success": reached}, enough

        return watch
