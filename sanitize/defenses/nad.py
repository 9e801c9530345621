"""NAD: train a classifier to look where a fine-tuned copy of itself looks."""

from __future__ import annotations

import copy
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from sanitize.data import DeviceImages, ImageSet
from sanitize.data.crops import PaddedCrops
from sanitize.data.labels import training_labels
from sanitize.defenses.base import Need, Paper, Purified, Purifier
from sanitize.defenses.fine_tune import FineTune
from sanitize.errors import ConfigError
from sanitize.functional.attention_maps import FeatureMaps, WithMaps, attention_distance, stage_names
from sanitize.suspects.networks import Network
from sanitize.training import Engine
from sanitize.types import ModelKind


class NAD(Purifier):
    """Neural Attention Distillation, for classifiers, with clean labelled images.

    The teacher is the suspect after plain fine-tuning (stage ``fine-tune``, the method of that name). Then the suspect
    itself (stage ``nad``) learns the labels and the teacher's attention maps (Li et al. 2021, eq. 1 to 3), taken at
    the last feature map of each spatial resolution: the stages of a residual network.

    Differs from the paper:
        - Its weights beta multiply a mean over positions, so that they depend on the maps' sizes. Here they multiply a
          sum over positions; the defaults are the authors' 500, 1000, 1000 on maps of 32, 16 and 8 pixels.
        - Both trainings start at a learning rate of 0.01 and fall by a cosine; the authors start at 0.1, which costs
          clean accuracy, and fall in steps.
        - No cutout, which would erase small triggers by itself.

    Example:
        >>> NAD(epochs=5, weights=(0.5, 4.0, 16.0, 16.0)).epochs
        5
    """

    name: ClassVar[str] = "nad"
    summary: ClassVar[str] = "distil attention maps from a fine-tuned copy; compare with fine-tune"
    paper: ClassVar[Paper] = Paper(
        "Neural Attention Distillation: Erasing Backdoor Triggers from Deep Neural Networks",
        "Li, Lyu, Koren, Lyu, Li, Ma; ICLR 2021",
        "https://arxiv.org/abs/2101.05930",
    )
    kinds: ClassVar[frozenset[ModelKind]] = frozenset({"classifier"})
    needs: ClassVar[frozenset[Need]] = frozenset({Need.MODEL, Need.IMAGES, Need.LABELS, Need.CLEAN_IMAGES})
    minimum_images: ClassVar[int] = 16

    teacher_epochs: int = Field(
        10, ge=1, description="passes over the images by the teacher", json_schema_extra={"paper": "5 to 10"}
    )
    epochs: int = Field(20, ge=1, description="passes over the images by the result")
    batch_size: int = Field(64, ge=2, description="images a step; a last batch that is not full is left out")
    learning_rate: float = Field(
        0.01, gt=0, description="of SGD, at the start, teacher and result", json_schema_extra={"paper": 0.1}
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(1e-4, ge=0, description="of SGD")
    weights: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (0.5, 4.0, 16.0),
        min_length=1,
        description="of the attention distances, one for each of the last stages",
        json_schema_extra={"paper": "500, 1000, 1000 times a mean over positions"},
    )
    power: float = Field(2.0, gt=0, description="p: of the activations in an attention map")
    crop_padding: int = Field(4, ge=0, description="pixels by which images are shifted at most")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a mirrored image; 0 where left and right differ")

    def purify(self, network: Network, data: ImageSet, engine: Engine) -> Purified:
        """Both stages; see the class.

        Raises:
            ConfigError: The network has fewer stages than there are weights.
            DataError: Labels are missing, are all the same, or name classes that the classifier does not have.
        """
        labels = training_labels(data, self.name, classes=network.spec.output_size).to(engine.device)
        images = DeviceImages(data, engine.device)
        crops = PaddedCrops(self.crop_padding, flip=self.flip)
        cleaned = copy.deepcopy(network).to(engine.device)
        stages = self._stages(cleaned, images.pixels(slice(0, 2)))
        tuned = self._teacher().purify(network, data, engine)
        teacher = tuned.network.to(engine.device).requires_grad_(False)

        def distances(seen: dict[str, Tensor], wanted: dict[str, Tensor]) -> Tensor:
            return torch.stack([attention_distance(seen[name], wanted[name], power=self.power) for name in stages])

        def measured() -> float:
            with torch.no_grad():
                pixels = images.pixels(slice(0, 256))
                cleaned(pixels), teacher(pixels)
                return float(distances(seen.last, wanted.last).mean())

        weights = torch.tensor(self.weights, device=engine.device)

        def loss(module: nn.Module, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            pixels = crops(images.pixels(indices), generator)
            logits, maps = module(pixels)
            label = cross_entropy(logits, labels[indices.to(engine.device)])
            with torch.no_grad(), engine.fabric.autocast():
                teacher(pixels)
            attention = (weights * distances(maps, wanted.last)).sum()
            return {"loss": label + attention, "label": label, "attention": attention}

        with FeatureMaps(cleaned, stages) as seen, FeatureMaps(teacher, stages) as wanted:
            before = measured()
            history = engine.fit(
                self.name,
                WithMaps(cleaned, seen),
                loss,
                images=len(images),
                batch_size=self.batch_size,
                epochs=self.epochs,
                drop_last=True,
                optimizer=lambda parameters: SGD(
                    parameters,
                    lr=self.learning_rate,
                    momentum=self.momentum,
                    weight_decay=self.weight_decay,
                    nesterov=self.momentum > 0,
                ),
                scheduler=lambda optimizer, steps: CosineAnnealingLR(optimizer, T_max=steps),
            )
            after = measured()
        return Purified(
            cleaned,
            before={"attention_distance": before},
            after={"attention_distance": after},
            history={**tuned.history, self.name: history},
        )

    def _teacher(self) -> FineTune:
        return FineTune(
            epochs=self.teacher_epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            crop_padding=self.crop_padding,
            flip=self.flip,
        )

    def _stages(self, network: Network, pixels: Tensor) -> list[str]:
        found = stage_names(network, pixels)
        if len(found) < len(self.weights):
            raise ConfigError(
                f"nad compares the attention maps of the last {len(self.weights)} stages, and "
                f"{network.spec.architecture} has {len(found)} (a stage is a spatial resolution above 1x1). "
                f"Give as many `weights` as it has stages, or choose another method."
            )
        return found[-len(self.weights) :]
