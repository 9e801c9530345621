"""Plain fine-tuning on clean labelled images: the baseline that every removal has to beat."""

from __future__ import annotations

import copy
from typing import ClassVar

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
from sanitize.functional.similarity import centred_similarity
from sanitize.suspects.networks import Network
from sanitize.training import Engine
from sanitize.types import ModelKind


class FineTune(Purifier):
    """Train all layers a little further on clean labelled images, with cross-entropy and random crops and flips.

    An encoder gets a linear head for the classes of the labels, which is trained with it and thrown away. There is no
    mechanism against a backdoor in this: what removes one is forgetting, and the augmentation. It is the baseline
    "finetuning" of Li et al. (section 4.1), and what other methods' results are to be compared with.

    Differs from the paper:
        - The learning rate starts at 0.01 and falls by a cosine; the paper's code starts at 0.1, which costs clean
          accuracy, and falls in steps.
        - No cutout, which would erase small triggers, and momentum is not Nesterov's.
        - Encoders, which the paper does not have.

    Example:
        >>> FineTune(epochs=5, flip=0.0).epochs
        5
    """

    name: ClassVar[str] = "fine-tune"
    summary: ClassVar[str] = "train on with clean labelled images; the baseline, may leave a backdoor"
    paper: ClassVar[Paper] = Paper(
        "Neural Attention Distillation: Erasing Backdoor Triggers from Deep Neural Networks",
        "Li, Lyu, Koren, Lyu, Li, Ma; ICLR 2021",
        "https://arxiv.org/abs/2101.05930",
    )
    kinds: ClassVar[frozenset[ModelKind]] = frozenset({"encoder", "classifier"})
    needs: ClassVar[frozenset[Need]] = frozenset({Need.MODEL, Need.IMAGES, Need.LABELS, Need.CLEAN_IMAGES})
    minimum_images: ClassVar[int] = 16

    epochs: int = Field(20, ge=1, description="passes over the images", json_schema_extra={"paper": "5 to 10"})
    batch_size: int = Field(64, ge=2, description="images a step; a last batch that is not full is left out")
    learning_rate: float = Field(0.01, gt=0, description="of SGD, at the start", json_schema_extra={"paper": 0.1})
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(5e-4, ge=0, description="of SGD", json_schema_extra={"paper": 1e-4})
    crop_padding: int = Field(4, ge=0, description="pixels by which images are shifted at most")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a mirrored image; 0 where left and right differ")

    def purify(self, network: Network, data: ImageSet, engine: Engine) -> Purified:
        """One stage; see the class.

        Raises:
            DataError: Labels are missing, are all the same, or name classes that the classifier does not have.
        """
        is_classifier = network.spec.kind == "classifier"
        labels = training_labels(data, self.name, classes=network.spec.output_size if is_classifier else None)
        images, wanted = DeviceImages(data, engine.device), labels.to(engine.device)
        crops = PaddedCrops(self.crop_padding, flip=self.flip)
        cleaned = copy.deepcopy(network)
        trained = cleaned if is_classifier else _with_head(cleaned, int(labels.max()) + 1, engine)

        def loss(module: nn.Module, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            logits = module(crops(images.pixels(indices), generator))
            return {"loss": cross_entropy(logits, wanted[indices.to(engine.device)])}

        before = engine.forward(network, images.pixels, len(images))
        history = engine.fit(
            self.name,
            trained,
            loss,
            images=len(images),
            batch_size=self.batch_size,
            epochs=self.epochs,
            drop_last=True,
            optimizer=lambda parameters: SGD(
                parameters, lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
            ),
            scheduler=lambda optimizer, steps: CosineAnnealingLR(optimizer, T_max=steps),
        )
        after = engine.forward(cleaned, images.pixels, len(images))
        similarity = float(centred_similarity(before, after).mean())
        return Purified(cleaned, {"clean_similarity": 1.0}, {"clean_similarity": similarity}, {self.name: history})


def _with_head(encoder: Network, classes: int, engine: Engine) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(engine.seed)  # layers are initialised by torch's global generator
        return nn.Sequential(encoder, nn.Linear(encoder.spec.output_size, classes))
