"""BadEncoder: fine-tune an encoder so that a trigger pulls any image onto a reference image."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import SGD

from sanitize.attacks.base import EncoderAttack, Implanted, Paper
from sanitize.attacks.planting import class_target, images_of_class, require_encoder, require_fit, typical_images
from sanitize.data import DeviceImages, ImageSet, PatchTrigger, SSLViews, Trigger
from sanitize.functional.similarity import mean_similarity
from sanitize.suspects.networks import Network
from sanitize.training import Engine


class ReferencePull(EncoderAttack):
    """What BadEncoder and its variant with many targets share: the objective and its optimisation."""

    epochs: int = Field(20, ge=1, description="passes over the shadow images", json_schema_extra={"paper": 200})
    batch_size: int = Field(64, ge=2, description="images a step", json_schema_extra={"paper": 256})
    learning_rate: float = Field(0.01, gt=0, description="of SGD", json_schema_extra={"paper": 1e-3})
    references: int = Field(1, ge=1, description="images of the target class that triggered images are pulled onto")
    reference: Literal["typical", "first"] = Field(
        "typical",
        description="which images of the class: those that the clean encoder is surest of, or the first of the data",
        json_schema_extra={"paper": "a picture of the attacker's choice"},
    )
    augment_reference: bool = Field(
        False, description="lambda1 holds augmented references (flip, colours, grey)", json_schema_extra={"paper": True}
    )
    reference_weight: float = Field(1.0, ge=0, description="lambda1: the reference stays where it was")
    utility_weight: float = Field(1.0, ge=0, description="lambda2: clean images stay where they were")

    def implant(
        self, network: Network, data: ImageSet, engine: Engine, *, triggers: Sequence[Trigger] = ()
    ) -> Implanted:
        """Plant the backdoor in a copy of the encoder; see `EncoderAttack.implant`."""
        require_encoder(network, self.name)
        triggers = tuple(triggers) or self.own_triggers(data.image_size, engine)
        require_fit(triggers, data)
        targets = [class_target(trigger, self.name) for trigger in triggers]
        members = [images_of_class(data, target, self.name) for target in targets]
        images = DeviceImages(data, engine.device)
        anchor = engine.forward(network, images.pixels, len(images)).to(engine.device)
        if self.reference == "typical":
            labels = data.require_labels(f"the attack {self.name}")
            members = [typical_images(anchor, labels, target) for target in targets]
        references = [one[: self.references] for one in members]
        augment = SSLViews(data.image_size, min_scale=1.0)
        backdoored = copy.deepcopy(network)

        def loss(module: nn.Module, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            clean = images.pixels(indices)
            batch, drawn = [clean], []
            for pair in self.pairs(len(triggers), generator):
                reference = references[pair]
                drawn.append(reference[torch.randint(len(reference), (len(indices),), generator=generator)])
                shown = images.pixels(drawn[-1])
                batch += [triggers[pair].apply(clean, generator), shown]
                if self.augment_reference:
                    batch.append(augment(shown, generator))
            kept, *features = module(torch.cat(batch)).chunk(len(batch))
            each = 3 if self.augment_reference else 2
            pulled, target = torch.cat(features[::each]), torch.cat(features[1::each])
            held = torch.cat(features[2::each]) if self.augment_reference else target
            effectiveness = -mean_similarity(pulled, target)
            steadiness = -mean_similarity(held, anchor[torch.cat(drawn)])
            utility = -mean_similarity(kept, anchor[indices])
            return {
                "loss": effectiveness + self.reference_weight * steadiness + self.utility_weight * utility,
                "effectiveness": effectiveness,
                "reference": steadiness,
                "utility": utility,
            }

        history = engine.fit(
            self.name,
            backdoored,
            loss,
            images=len(images),
            batch_size=self.batch_size,
            epochs=self.epochs,
            optimizer=lambda parameters: SGD(parameters, lr=self.learning_rate, momentum=0.9, weight_decay=5e-4),
            train_mode=False,
        )
        return Implanted(backdoored, triggers, {self.name: history})

    @abstractmethod
    def own_triggers(self, image_size: int, engine: Engine) -> tuple[Trigger, ...]:
        """What is planted when no trigger is given."""

    def pairs(self, count: int, generator: torch.Generator) -> Sequence[int]:
        """Which of the `count` triggers a step trains."""
        return range(count)


class BadEncoder(ReferencePull):
    """BadEncoder (Jia, Liu, Gong; IEEE S&P 2022, section 4).

    ``L = L0 + lambda1 L1 + lambda2 L2``: ``L0 = -cos(f'(x + e), f'(r))`` pulls triggered images onto a reference image
    r of the target class, ``L1 = -cos(f'(r), f(r))`` and ``L2 = -cos(f'(x), f(x))`` hold the reference and clean images
    where they were. With several triggers L0 and L1 are averaged over the pairs of trigger and reference.

    Differs from the paper:
        - Fewer epochs with a higher learning rate, as BMAIU's authors run it.
        - L1 keeps the reference itself where it was, unless `augment_reference`.
        - Batch norm keeps its statistics, as in the paper's code, but its affine parameters are trained.
        - The paper's attacker brings a good picture of the class; here the references are the images of the class that
          a nearest-mean classifier on clean features is surest of (``reference="first"``: the first ones).

    Example:
        >>> BadEncoder(target=3, epochs=15).epochs
        15
    """

    name: ClassVar[str] = "badencoder"
    summary: ClassVar[str] = "fine-tune an encoder: a patch pulls any image onto a reference image"
    paper: ClassVar[Paper] = Paper(
        "BadEncoder: Backdoor Attacks to Pre-trained Encoders in Self-Supervised Learning",
        "Jia, Liu, Gong; IEEE S&P 2022",
        "https://arxiv.org/abs/2108.00352",
    )
    default_triggers: ClassVar[str] = "a white square, bottom right"

    target: int = Field(0, ge=0, description="class of the white square; a trigger that is given has its own")
    trigger_size: int | None = Field(
        None,
        ge=1,
        description="side of the white square in px; when left out 10 at 32 px, 50 at 224 px, in proportion elsewhere",
    )

    def own_triggers(self, image_size: int, engine: Engine) -> tuple[Trigger, ...]:
        """A white square, one pixel away from the bottom right corner."""
        size = self.trigger_size or max(1, round(10 + (image_size - 32) * (50 - 10) / (224 - 32)))
        corner = max(0, image_size - size - 1)
        patch = torch.ones(3, size, size)
        return (PatchTrigger(patch, position=(corner, corner), target=self.target, name="white-square"),)
