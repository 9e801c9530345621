"""UAU: find what makes the features of different images collapse, teach the network to ignore it, and again."""

from __future__ import annotations

import copy
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from sanitize.data import DeviceImages, ImageSet
from sanitize.data.crops import PaddedCrops
from sanitize.defenses.base import Need, Paper, Purified, Purifier
from sanitize.defenses.uau_pool import Pool
from sanitize.errors import ArchitectureError, DataError
from sanitize.functional.changes import BOUND, FAMILIES
from sanitize.functional.collapse import Found, fresh_search, unlearning_losses
from sanitize.functional.similarity import centred_similarity
from sanitize.functional.squares import search_square
from sanitize.suspects.heads import find_head, remove_head
from sanitize.suspects.networks import Network
from sanitize.training import Engine, History, Watch
from sanitize.types import Finding, ModelKind, Severity


class UAU(Purifier):
    """Universal adversarial unlearning, for encoders and classifiers, without labels: our own recipe.

    Each round *finds* one universal change of the input under which the features of different images collapse onto
    each other (a small perturbation, a picture that is blended in, a small patch, a larger one, in turn; before the
    first round a square of one colour), and *unlearns* it: changed images shall have the features that they have
    unchanged in the suspect. What collapses little is no backdoor, and is left alone. Neither trigger, target, labels
    nor clusters are needed, and nothing is assumed of the trigger but that such changes come near it.

    Example:
        >>> UAU(rounds=10, families="perturbation").bound
        0.05
    """

    name: ClassVar[str] = "uau"
    summary: ClassVar[str] = "find what makes features collapse, unlearn it, repeat; for triggers of many kinds"
    paper: ClassVar[Paper] = Paper(
        "own recipe, no publication; after: Adversarial Unlearning of Backdoors via Implicit Hypergradient",
        "our own recipe, unpublished; nearest: Zeng, Chen, Park, Mao, Jin, Jia; ICLR 2022",
        "https://arxiv.org/abs/2110.03735",
    )
    kinds: ClassVar[frozenset[ModelKind]] = frozenset({"encoder", "classifier"})
    needs: ClassVar[frozenset[Need]] = frozenset({Need.MODEL, Need.IMAGES, Need.CLEAN_IMAGES})
    minimum_images: ClassVar[int] = 64

    rounds: int = Field(40, ge=1, description="how often a change is searched and unlearned")
    families: Literal["all", "perturbation", "blend", "patch"] = Field(
        "all",
        description="what is searched: bounded perturbations, pictures that are blended in, patches of two sizes, or "
        "all in turn",
    )
    squares: bool = Field(
        True, description="look for squares of one colour, too, before and after; what is found before is unlearned"
    )
    layer: Literal["auto", "output", "features"] = Field(
        "auto",
        description="where a classifier is examined: its logits, the features before its head, or these where its head "
        "is known",
    )
    starts: int = Field(
        8, ge=1, description="perturbations or pictures that a search begins with; patches tile the image"
    )
    search_steps: int = Field(8, ge=1, description="steps of Adam in each of the three parts of a search")
    minimum_collapse: float = Field(
        0.6,
        ge=-1,
        le=1,
        description="perturbations, pictures and patches of an eighth of the side whose collapse is less are taken for "
        "nobody's work, and not unlearned",
    )
    minimum_collapse_large: float = Field(
        0.9, ge=-1, le=1, description="as minimum_collapse, of patches of a quarter, to which clean networks give way"
    )
    minimum_collapse_square: float = Field(
        0.75, ge=-1, le=1, description="as minimum_collapse, of squares of one colour"
    )
    minimum_alignment: float = Field(
        0.3, ge=-1, le=1, description="as minimum_collapse, of changes that were searched towards a known direction"
    )
    unlearn_steps: int = Field(12, ge=1, description="steps of SGD a round")
    pool_size: int = Field(6, ge=1, description="changes found last that are rehearsed; 1: only the newest")
    batch_size: int = Field(64, ge=2, description="images a step, in search and unlearning")
    bound: float = Field(
        BOUND,
        gt=0,
        le=1,
        description="largest change of a pixel by a perturbation; pixels are 0 to 1. Pictures have twice this share",
    )
    directed_bound: float = Field(
        0.1, gt=0, le=1, description="as bound, of what is searched towards a known direction"
    )
    crop_padding: int = Field(3, ge=0, description="clean images are shifted by up to so many pixels while unlearning")
    mix: float = Field(0.5, ge=0, le=0.5, description="largest share of another image that is mixed into a clean one")
    learning_rate: float = Field(0.003, gt=0, description="of SGD, at the start; it falls by a cosine")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(0.0, ge=0, description="of SGD")
    clip_norm: float = Field(
        0.5, gt=0, description="gradients longer than this times the sum of the loss weights are scaled down"
    )
    consistency_weight: float = Field(10.0, ge=0, description="clean images look as in the suspect")
    unlearn_weight: float = Field(10.0, ge=0, description="u: changed images look as they do unchanged in the suspect")
    centred: bool = Field(True, description="cosines of the unlearning are taken around the mean clean feature")
    evidence_steps: int = Field(12, ge=1, description="as search_steps, of the searches that measure, before and after")
    minimum_clean_similarity: float = Field(
        0.5,
        ge=-1,
        le=1,
        description="guard: stop when the mean centred cosine of clean features to the suspect's falls below",
    )

    def purify(self, network: Network, data: ImageSet, engine: Engine) -> Purified:
        """Rounds of finding and unlearning; see the class.

        Raises:
            ArchitectureError: Features are to be examined of a classifier whose head is not known.
            DataError: Features are constant.
            TrainingError: A search became NaN from two starts.
        """
        images = DeviceImages(data, engine.device)
        suspect = self._examined(network)
        suspect_features = engine.forward(suspect, images.pixels, len(images))
        _require_different(suspect_features)
        found = self._fresh(suspect, suspect_features, images, data.image_size, engine)
        trained = copy.deepcopy(suspect)
        history = self._unlearn(
            trained, suspect, suspect_features, images, data.image_size, found.get("square"), engine
        )
        features = engine.forward(trained, images.pixels, len(images))
        left = self._fresh(trained, features, images, data.image_size, engine)
        cleaned = copy.deepcopy(network)
        cleaned.load_state_dict(trained.state_dict(), strict=False)  # without the head, where that was taken off
        return Purified(
            cleaned,
            _measures(found) | {"clean_similarity": 1.0},
            _measures(left) | {"clean_similarity": float(centred_similarity(suspect_features, features).mean())},
            {"unlearn": history},
            _pictures("before", found) | _pictures("after", left),
            findings=self._findings(found, left),
            destroyed=history.stopped,
        )

    def _examined(self, network: Network) -> Network:
        """The network itself, or a classifier without its head."""
        if self.layer == "output" or network.spec.kind == "encoder":
            return network
        head = find_head(network.backbone)
        if head is None and self.layer == "auto":
            return network
        if head is None:
            raise ArchitectureError(
                f"{network.spec.architecture} has no head that is known to be one, so that the features before it "
                "cannot be examined. Use layer=output."
            )
        headless = copy.deepcopy(network)
        remove_head(headless.backbone, head)
        return headless

    def _fresh(
        self, network: Network, features: Tensor, images: DeviceImages, image_size: int, engine: Engine
    ) -> dict[str, Found]:
        """Evidence: searches that depend on nothing but the network, the images and the seed."""
        centre = features.mean(dim=0).to(engine.device)
        asked = engine.spread(network)
        with engine.processes.together(f"searches for evidence in {len(features)} images"), engine.fabric.autocast():
            found: dict[str, Found] = {
                family: fresh_search(
                    asked,
                    images.pixels,
                    len(images),
                    family,
                    image_size,
                    centre,
                    engine.generator(f"uau/evidence/{family}"),
                    starts=self.starts,
                    steps=self.evidence_steps,
                    batch_size=self.batch_size,
                )
                for family in FAMILIES
            }
            if self.squares:
                generator = engine.generator("uau/evidence/square")
                found["square"] = search_square(
                    asked, images.pixels, len(images), image_size, centre, generator, batch_size=self.batch_size
                )
        return found

    def _unlearn(
        self,
        network: Network,
        suspect: Network,
        suspect_features: Tensor,
        images: DeviceImages,
        image_size: int,
        square: Found | None,
        engine: Engine,
    ) -> History:
        centre = suspect_features.mean(dim=0).to(engine.device)
        origin = centre if self.centred else torch.zeros_like(centre)
        batch_size = min(self.batch_size, len(images))
        frozen = copy.deepcopy(suspect).to(engine.device).eval().requires_grad_(False)
        pool = Pool(self, frozen, images, image_size, centre, square, engine)
        crops = PaddedCrops(self.crop_padding, flip=0.0)
        features_of = engine.spread(frozen)

        def loss(module: nn.Module, _: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            batch = torch.randperm(len(images), generator=generator)[:batch_size]
            clean = self._mixed(crops(images.pixels(batch), generator), generator)
            with torch.no_grad():
                wanted = features_of(clean) - origin
            kept, changed = module(torch.cat([clean, pool.changed(clean, generator)])).chunk(2)
            return unlearning_losses(
                wanted,
                kept - origin,
                changed - origin,
                consistency_weight=self.consistency_weight,
                unlearn_weight=self.unlearn_weight,
            )

        return engine.fit(
            "unlearn",
            network,
            loss,
            images=self.unlearn_steps * batch_size,  # an epoch of the engine is a round; `loss` draws its own batches
            batch_size=batch_size,
            epochs=self.rounds,
            clip_norm=self.clip_norm * (self.consistency_weight + self.unlearn_weight),
            optimizer=lambda parameters: SGD(
                parameters, lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
            ),
            scheduler=lambda optimizer, steps: CosineAnnealingLR(optimizer, T_max=steps),
            train_mode=False,
            watch=self._guard(suspect_features, images, engine),
            companion=pool,
        )

    def _guard(self, suspect_features: Tensor, images: DeviceImages, engine: Engine) -> Watch:
        watched = min(256, len(images))

        def watch(network: nn.Module) -> tuple[dict[str, float], str | None]:
            features = engine.forward(network, images.pixels, watched)
            kept = float(centred_similarity(suspect_features[:watched], features).mean())
            if kept >= self.minimum_clean_similarity:
                return {"clean_similarity": kept}, None
            return {"clean_similarity": kept}, (
                f"clean features moved too far from the suspect's (mean centred cosine {kept:.2f}, "
                f"at least {self.minimum_clean_similarity:.2f} wanted): the network is being destroyed. "
                "Lower learning_rate, or use fewer rounds."
            )

        return watch

    def _findings(self, found: dict[str, Found], left: dict[str, Found]) -> list[Finding]:
        """That nothing was found, or that what was found is still there."""
        still = {
            name: one.collapse
            for name, one in left.items()
            if min(one.collapse, found[name].collapse) >= self._least(name)
        }
        if still:
            message = (
                f"Fresh searches make features collapse in the result as in the suspect ({_told(still)}): what was "
                f"found was not unlearned. Set centred={str(not self.centred).lower()}, or raise learning_rate."
            )
            rule = "uau-still-collapses"
            return [Finding(rule=rule, severity=Severity.WARNING, message=message, evidence=dict(still))]
        if any(one.collapse >= self._least(name) for name, one in found.items()):
            return []
        reached = _told({name: one.collapse for name, one in found.items()})
        message = f"No universal change was found that makes features collapse (mean centred cosine {reached})."
        evidence = dict(_measures(found))
        return [Finding(rule="uau-nothing-found", severity=Severity.NOTE, message=message, evidence=evidence)]

    def _least(self, name: str) -> float:
        """Collapse from which what a fresh search came back with is a find."""
        return self.minimum_collapse_square if name == "square" else self.minimum_collapse

    def _mixed(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """A random share, up to `mix`, of another image in each: more views than a few hundred images have."""
        share = self.mix * torch.rand(len(clean), generator=generator).to(clean.device)[:, None, None, None]
        return (1 - share) * clean + share * clean[torch.randperm(len(clean), generator=generator).to(clean.device)]


def _require_different(features: Tensor) -> None:
    if float(features.std(dim=0).max()) <= 1e-6 * float(features.abs().max()):
        raise DataError(
            f"the suspect's features of {len(features)} images are (nearly) constant: there is nothing to collapse. "
            "Check --normalization and --data."
        )


def _told(collapse: dict[str, float]) -> str:
    return ", ".join(f"{value:.2f} by a {name}" for name, value in collapse.items())


def _measures(found: dict[str, Found]) -> dict[str, float | None]:
    return {f"collapse_{name}": one.collapse for name, one in found.items()}


def _pictures(when: str, found: dict[str, Found]) -> dict[str, Tensor]:
    return {f"{name}-{when}": one.changes.picture().cpu() for name, one in found.items()}
