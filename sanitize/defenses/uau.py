"""UAU: find what makes the features of different images collapse, teach the network to ignore it, and again."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from sanitize.data import DeviceImages, ImageSet
from sanitize.defenses.base import Need, Paper, Purified, Purifier
from sanitize.errors import ArchitectureError, DataError
from sanitize.functional.collapse import (
    FAMILIES,
    Change,
    Family,
    Found,
    fresh_search,
    new_change,
    search,
    unlearning_losses,
)
from sanitize.functional.similarity import centred_similarity
from sanitize.suspects.heads import find_head, remove_head
from sanitize.suspects.networks import Network
from sanitize.training import Engine, History, Watch
from sanitize.types import Finding, ModelKind, Severity

NOTHING = 0.5  # where the collapse that fresh searches reach is less, the report says that nothing was found


class UAU(Purifier):
    """Universal adversarial unlearning, for encoders and classifiers, without labels: our own recipe.

    Each round *finds* one universal change of the input under which the features of different images collapse onto
    each other (a bounded perturbation, or a masked pattern), and *unlearns* it: changed images shall have the features
    that they have unchanged in the suspect. Neither trigger, target, labels nor clusters are needed, and nothing is
    assumed of the trigger but that such changes come near it.

    Example:
        >>> UAU(rounds=10, families="perturbation").bound
        0.15
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

    rounds: int = Field(30, ge=1, description="how often a change is searched and unlearned")
    families: Literal["both", "perturbation", "pattern"] = Field(
        "both", description="what is searched: bounded perturbations, masked patterns, or both in turn"
    )
    layer: Literal["output", "features"] = Field(
        "output", description="where a classifier is examined: its logits, or the features before its head"
    )
    search_steps: int = Field(15, ge=1, description="steps of Adam a search")
    unlearn_steps: int = Field(6, ge=1, description="steps of SGD a round")
    pool_size: int = Field(6, ge=1, description="changes found last that are rehearsed; 1: only the newest")
    batch_size: int = Field(64, ge=2, description="images a step, in search and unlearning")
    bound: float = Field(0.15, gt=0, le=1, description="largest change of a pixel by a perturbation; pixels are 0 to 1")
    learning_rate: float = Field(0.01, gt=0, description="of SGD, at the start; it falls by a cosine")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(5e-4, ge=0, description="of SGD")
    clip_norm: float = Field(
        0.5, gt=0, description="gradients longer than this times the sum of the loss weights are scaled down"
    )
    consistency_weight: float | None = Field(
        None, ge=0, description="clean images look as in the suspect; 1 for encoders, 10 for classifiers when left out"
    )
    unlearn_weight: float = Field(10.0, ge=0, description="u: changed images look as they do unchanged in the suspect")
    centred: bool = Field(False, description="cosines of the unlearning are taken around the mean clean feature")
    evidence_steps: int = Field(40, ge=1, description="steps of Adam in the searches before and after, which measure")
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
        history = self._unlearn(trained, suspect_features, images, data.image_size, engine)
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
            findings=_findings(found),
            destroyed=history.stopped,
        )

    def _examined(self, network: Network) -> Network:
        """The network itself, or a classifier without its head."""
        if self.layer == "output" or network.spec.kind == "encoder":
            return network
        head = find_head(network.backbone)
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
    ) -> dict[Family, Found]:
        """Evidence: searches that depend on nothing but the network, the images and the seed."""
        centre = features.mean(dim=0).to(engine.device)
        with engine.fabric.autocast():
            return {
                family: fresh_search(
                    network,
                    images.pixels,
                    len(images),
                    family,
                    image_size,
                    centre,
                    engine.generator(f"uau/evidence/{family}"),
                    steps=self.evidence_steps,
                    batch_size=self.batch_size,
                )
                for family in FAMILIES
            }

    def _unlearn(
        self, network: Network, suspect_features: Tensor, images: DeviceImages, image_size: int, engine: Engine
    ) -> History:
        anchor = suspect_features.to(engine.device)
        centre = anchor.mean(dim=0)
        origin = centre if self.centred else torch.zeros_like(centre)
        batch_size = min(self.batch_size, len(images))
        consistency_weight = self.consistency_weight
        if consistency_weight is None:  # the head of a classifier is not refitted, as a probe on an encoder is
            consistency_weight = 1.0 if network.spec.kind == "encoder" else 10.0
        pool = _Pool(self, images, image_size, centre, engine)

        def loss(module: nn.Module, _: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            batch = torch.randperm(len(images), generator=generator)[:batch_size]
            clean = images.pixels(batch)
            kept, changed = module(torch.cat([clean, pool.draw(generator)(clean)])).chunk(2)
            wanted = anchor[batch.to(anchor.device)] - origin
            return unlearning_losses(
                wanted,
                kept - origin,
                changed - origin,
                consistency_weight=consistency_weight,
                unlearn_weight=self.unlearn_weight,
            )

        return engine.fit(
            "unlearn",
            network,
            loss,
            images=self.unlearn_steps * batch_size,  # an epoch of the engine is a round; `loss` draws its own batches
            batch_size=batch_size,
            epochs=self.rounds,
            clip_norm=self.clip_norm * (consistency_weight + self.unlearn_weight),
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


class _Pool:
    """The changes found last: one more is searched before each round, one is drawn at each step."""

    def __init__(self, method: UAU, images: DeviceImages, image_size: int, centre: Tensor, engine: Engine) -> None:
        self._method, self._images, self._image_size = method, images, image_size
        self._centre, self._engine = centre, engine
        self._turns: tuple[Family, ...] = FAMILIES if method.families == "both" else (method.families,)
        self._rounds = 0
        self._changes: list[tuple[Family, Change]] = []

    def before_epoch(self, network: nn.Module, generator: torch.Generator) -> dict[str, float]:
        """Search one more."""
        family = self._turns[self._rounds % len(self._turns)]
        with self._engine.fabric.autocast():
            found = search(
                network,
                self._images.pixels,
                len(self._images),
                lambda generator: self._start(family, generator),
                self._centre,
                generator,
                steps=self._method.search_steps,
                batch_size=self._method.batch_size,
            )
        self._rounds += 1
        self._changes = [*self._changes, (family, found.change)][-self._method.pool_size :]
        return {"collapse": found.collapse}

    def draw(self, generator: torch.Generator) -> Change:
        """The newest, or, in half of all draws, any."""
        which, place = torch.rand(2, generator=generator).tolist()
        return self._changes[-1 if which < 0.5 else int(place * len(self._changes))][1]

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {
            "rounds": self._rounds,
            "changes": [(family, change.state_dict()) for family, change in self._changes],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        self._rounds = state["rounds"]
        self._changes = []
        for family, values in state["changes"]:
            change = self._start(family, torch.Generator())
            change.load_state_dict(values)
            self._changes.append((family, change.requires_grad_(False).to(self._centre.device)))

    def _start(self, family: Family, generator: torch.Generator) -> Change:
        return new_change(family, self._image_size, self._method.bound, generator)


def _require_different(features: Tensor) -> None:
    if float(features.std(dim=0).max()) <= 1e-6 * float(features.abs().max()):
        raise DataError(
            f"the suspect's features of {len(features)} images are (nearly) constant: there is nothing to collapse. "
            "Check --normalization and --data."
        )


def _measures(found: dict[Family, Found]) -> dict[str, float | None]:
    collapse: dict[str, float | None] = {f"collapse_{family}": found[family].collapse for family in FAMILIES}
    return collapse | {"pattern_size": found["pattern"].penalty}


def _pictures(when: str, found: dict[Family, Found]) -> dict[str, Tensor]:
    return {
        f"{name}-{when}": picture.cpu() for one in found.values() for name, picture in one.change.pictures().items()
    }


def _findings(found: dict[Family, Found]) -> list[Finding]:
    if max(one.collapse for one in found.values()) >= NOTHING:
        return []
    reached = ", ".join(f"{one.collapse:.2f} by a {family}" for family, one in found.items())
    message = f"No universal change was found that makes features collapse (mean centred cosine {reached})."
    return [Finding(rule="uau-nothing-found", severity=Severity.NOTE, message=message, evidence=dict(_measures(found)))]
