"""BMAIU: implant a backdoor of our own, then unlearn it, and the attacker's weakens with it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import ClassVar

import torch
from pydantic import Field, JsonValue
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from sanitize.data import DeviceImages, ImageSet, PatchTrigger
from sanitize.defenses.base import Need, Paper, Purified, Purifier
from sanitize.errors import DataError
from sanitize.functional.clusters import Clusters, choose_reference_set, cluster
from sanitize.functional.implantation import implant_losses, unlearn_losses
from sanitize.functional.similarity import centred_similarity, mean_similarity
from sanitize.suspects.networks import Network
from sanitize.training import Engine, History, Watch
from sanitize.types import ModelKind

_EPOCHS = 20
_STEPS = 300  # with fewer, a few hundred images do not suffice to implant the canary (docs/methods/bmaiu.md)
_NOT_STATED: dict[str, JsonValue] = {"paper": "not stated"}


class BMAIU(Purifier):
    """Backdoor Mitigation through Active Implantation and Unlearning, for encoders, without labels.

    Stage 1 (``implant``, eq. 1 to 3) teaches the suspect f0 a canary of our own: a random patch that pulls features
    onto a reference set. Stage 2 (``unlearn``, eq. 4 to 6) starts from the result f1 and teaches it to ignore that
    canary, with f1 as the frozen anchor. The claim is empirical: unlearning one trigger weakens others of its kind.

    Differs from the paper:
        - The reference set is a cluster of the suspect's own features, since there are no labels (the paper takes
          images of one class and does not say how to find them).
        - With few images there are more than 20 epochs, so that each stage makes 300 steps (the paper's has 1,580).
        - Batch norm is frozen by default (not stated in the paper), so that both stages start at the anchor exactly.
        - Gradients are clipped and the learning rate falls by a cosine: without, small encoders may collapse.
        - A guard compares clean features with the suspect's after each epoch and stops when they have moved too far.

    Example:
        >>> BMAIU(unlearn_weight=5.0, epochs=10).unlearn_weight
        5.0
    """

    name: ClassVar[str] = "bmaiu"
    summary: ClassVar[str] = "implant a canary, unlearn it; removes backdoors of the canary's kind"
    paper: ClassVar[Paper] = Paper(
        "Backdoor Mitigation through Active Implantation and Unlearning",
        "Zhang, Li, Huang, Chen; Electronics 14(8):1587, 2025",
        "https://doi.org/10.3390/electronics14081587",
    )
    kinds: ClassVar[frozenset[ModelKind]] = frozenset({"encoder"})
    needs: ClassVar[frozenset[Need]] = frozenset({Need.MODEL, Need.IMAGES, Need.CLEAN_IMAGES})
    minimum_images: ClassVar[int] = 64

    epochs: int | None = Field(
        None,
        ge=1,
        description="passes over the images in each stage (N2); when left out 20, or more to make 300 steps",
        json_schema_extra={"paper": 20},
    )
    implant_epochs: int | None = Field(
        None, ge=1, description="passes in stage 1 (N1); as `epochs` when left out", json_schema_extra=_NOT_STATED
    )
    max_steps: int | None = Field(
        None, ge=1, description="stop each stage after so many steps", json_schema_extra={"paper": None}
    )
    batch_size: int = Field(64, ge=2, description="images a step", json_schema_extra=_NOT_STATED)
    learning_rate: float = Field(0.01, gt=0, description="of SGD, both stages", json_schema_extra=_NOT_STATED)
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD", json_schema_extra=_NOT_STATED)
    weight_decay: float = Field(5e-4, ge=0, description="of SGD", json_schema_extra=_NOT_STATED)
    clip_norm: float = Field(
        0.5,
        gt=0,
        description="gradients longer than this times the sum of the loss weights are scaled down",
        json_schema_extra={"paper": "no clipping"},
    )
    effectiveness_weight: float = Field(1.0, ge=0, description="u1: pull of the canary in stage 1")
    unlearn_weight: float = Field(10.0, ge=0, description="u2: a triggered image looks like its clean self")
    separation_weight: float = Field(
        1.0, ge=0, description="u3: and not like the reference set", json_schema_extra={"paper": "moderate"}
    )
    consistency_weight: float = Field(1.0, ge=0, description="weight of L0: clean images look as in the anchor")
    canary_size: int | None = Field(
        None, ge=1, description="side of the canary in px; 4 at 32 px, 16 at 224 px when left out"
    )
    clusters: int = Field(
        10, ge=2, description="k-means clusters; one is the reference set", json_schema_extra=_NOT_STATED
    )
    reference_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="share of that cluster, nearest to its centre, that the canary is pulled onto",
        json_schema_extra={"paper": "images of one class"},
    )
    anchor: str = Field("f1", pattern="^f[01]$", description="network whose clean features stage 2 keeps")
    detach_reference: bool = Field(False, description="no gradient through the reference features")
    freeze_batch_norm: bool = Field(
        True, description="keep batch norm statistics and dropout in eval mode", json_schema_extra=_NOT_STATED
    )
    minimum_clean_similarity: float = Field(
        0.5,
        ge=-1,
        le=1,
        description="guard: stop when the mean centred cosine of clean features to the suspect's falls below",
        json_schema_extra={"paper": "no guard"},
    )

    def purify(self, network: Network, data: ImageSet, engine: Engine) -> Purified:
        """Both stages; see the class."""
        images = DeviceImages(data, engine.device)
        suspect_features = engine.forward(network, images.pixels, len(images))
        canary = self._canary(data.image_size, engine.generator("bmaiu/canary"))
        clusters, target, reference = self._reference_set(suspect_features, engine)
        guard = self._guard(suspect_features, images, engine)

        implanted = copy.deepcopy(network)
        anchor = suspect_features.to(engine.device)

        def implant(module: nn.Module, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            clean, triggered, pulled = self._features(module, images, indices, canary, reference, generator)
            return implant_losses(
                anchor[indices], clean, triggered, pulled, effectiveness_weight=self.effectiveness_weight
            )

        history = {"implant": self._fit("implant", implanted, implant, len(images), engine, guard)}
        measure = self._measure(images, canary, clusters, target, suspect_features, engine)
        before = measure(implanted)
        if history["implant"].stopped:
            return Purified(
                implanted, before, before, history, {"canary": canary.patch}, destroyed=history["implant"].stopped
            )

        cleaned, history["unlearn"] = self.unlearn(implanted, images, canary, reference, engine, suspect_features)
        return Purified(
            cleaned,
            before,
            measure(cleaned),
            history,
            {"canary": canary.patch},
            destroyed=history["unlearn"].stopped,
        )

    def unlearn(
        self,
        implanted: Network,
        images: DeviceImages,
        canary: PatchTrigger,
        reference: Tensor,
        engine: Engine,
        suspect_features: Tensor,
    ) -> tuple[Network, History]:
        """Stage 2 alone: a copy of the network that ignores a known trigger.

        Args:
            implanted: f1, which carries it; left unchanged.
            images: Clean images.
            canary: The known trigger.
            reference: Indices (R,) of the images that it pulls features onto.
            engine: Device, seed, checkpoints.
            suspect_features: f0 of all images (N, D): what the guard (and anchor f0) compare with.
        """
        cleaned = copy.deepcopy(implanted)
        anchor = suspect_features.to(engine.device)
        if self.anchor == "f1":
            anchor = engine.forward(implanted, images.pixels, len(images)).to(engine.device)

        def loss(module: nn.Module, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            clean, triggered, pushed = self._features(module, images, indices, canary, reference, generator)
            return unlearn_losses(
                anchor[indices],
                clean,
                triggered,
                pushed,
                unlearn_weight=self.unlearn_weight,
                separation_weight=self.separation_weight,
                consistency_weight=self.consistency_weight,
            )

        guard = self._guard(suspect_features, images, engine)
        return cleaned, self._fit("unlearn", cleaned, loss, len(images), engine, guard)

    def _canary(self, image_size: int, generator: torch.Generator) -> PatchTrigger:
        size = self.canary_size or max(4, image_size // 14)
        if size > image_size:
            raise DataError(f"canary_size={size} px is larger than the images ({image_size} px).")
        patch = torch.rand(3, size, size, generator=generator)
        return PatchTrigger(patch=patch, mode="replace", position="random", name="canary")

    def _reference_set(self, features: Tensor, engine: Engine) -> tuple[Clusters, int, Tensor]:
        found = cluster(features, self.clusters, seed=engine.seed)
        minimum = max(2, len(features) // (5 * self.clusters))
        generator = engine.generator("bmaiu/reference")
        chosen = choose_reference_set(found, minimum=minimum, share=self.reference_share, generator=generator)
        if chosen is None or float(features.std(dim=0).max()) == 0.0:
            raise DataError(
                f"the suspect's features of {len(features)} images form no cluster of {minimum} images or more: "
                "they are (nearly) constant, or the images are too few. Check --normalization and --data."
            )
        return found, *chosen

    def _features(
        self,
        module: nn.Module,
        images: DeviceImages,
        indices: Tensor,
        canary: PatchTrigger,
        reference: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Features of clean, triggered and reference images by one forward, so that batch norm sees one mixture."""
        clean = images.pixels(indices)
        drawn = reference[torch.randint(len(reference), (len(indices),), generator=generator)]
        features = module(torch.cat([clean, canary.apply(clean, generator), images.pixels(drawn)]))
        first, second, third = features.chunk(3)
        return first, second, third.detach() if self.detach_reference else third

    def _fit(
        self,
        stage: str,
        network: Network,
        loss: Callable[[nn.Module, Tensor, torch.Generator], dict[str, Tensor]],
        images: int,
        engine: Engine,
        guard: Watch,
    ) -> History:
        weight = 1 + self.effectiveness_weight
        if stage == "unlearn":
            weight = self.consistency_weight + self.unlearn_weight + self.separation_weight
        return engine.fit(
            stage,
            network,
            loss,
            images=images,
            batch_size=self.batch_size,
            epochs=(stage == "implant" and self.implant_epochs) or self.epochs or self._enough_epochs(images),
            max_steps=self.max_steps,
            clip_norm=self.clip_norm * weight,
            optimizer=lambda parameters: SGD(
                parameters, lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
            ),
            scheduler=lambda optimizer, steps: CosineAnnealingLR(optimizer, T_max=steps),
            train_mode=not self.freeze_batch_norm,
            watch=guard,
        )

    def _enough_epochs(self, images: int) -> int:
        return max(_EPOCHS, math.ceil(_STEPS / math.ceil(images / self.batch_size)))

    def _guard(self, suspect_features: Tensor, images: DeviceImages, engine: Engine) -> Watch:
        watched = min(256, len(images))

        def watch(network: nn.Module) -> tuple[dict[str, float], str | None]:
            features = engine.forward(network, images.pixels, watched)
            kept = float(centred_similarity(suspect_features[:watched], features).mean())
            if kept >= self.minimum_clean_similarity:
                return {"clean_similarity": kept}, None
            return {"clean_similarity": kept}, (
                f"clean features moved too far from the suspect's (mean centred cosine {kept:.2f}, "
                f"at least {self.minimum_clean_similarity:.2f} wanted): the encoder is being destroyed. "
                "Lower learning_rate, or use fewer epochs."
            )

        return watch

    def _measure(
        self,
        images: DeviceImages,
        canary: PatchTrigger,
        clusters: Clusters,
        target: int,
        suspect_features: Tensor,
        engine: Engine,
    ) -> Callable[[Network], dict[str, float | None]]:
        """How well the canary works: similarity of triggered features to the target cluster, share in it."""
        others = torch.nonzero(clusters.assignment != target).flatten()

        def triggered(indices: Tensor) -> Tensor:
            return canary.apply(images.pixels(others[indices]), engine.generator("bmaiu/measure"))

        def measure(network: Network) -> dict[str, float | None]:
            clean = engine.forward(network, images.pixels, len(images))
            shown = engine.forward(network, triggered, len(others))
            moved = clusters.of(clean)  # the same images' centres, where this network has them
            return {
                "canary_similarity": float(mean_similarity(shown, moved.centres[target : target + 1])),
                "canary_success_rate": float((moved.nearest(shown) == target).float().mean()),
                "clean_similarity": float(centred_similarity(suspect_features, clean).mean()),
            }

        return measure
