"""D-BR: split the untrusted training set in the suspect, unlearn the poisoned part and relearn the clean one."""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, JsonValue
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from sanitize.data import DeviceImages, ImageSet
from sanitize.data.crops import PaddedCrops
from sanitize.data.labels import training_labels
from sanitize.defenses.base import Need, Paper, Purified, Purifier
from sanitize.defenses.unlearning import InTurns, Passes, Pressure, Together
from sanitize.defenses.unlearning_parts import Parts, match_rate, measure
from sanitize.detection import FCT, Split
from sanitize.errors import ConfigError, DataError
from sanitize.suspects.networks import Network
from sanitize.training import Engine, Loss, Watch
from sanitize.types import Finding, ModelKind, Severity

_ROUNDS, _STEPS = 10, 300  # of the unlikelihood form
_NOT_THERE: dict[str, JsonValue] = {"paper": "not there"}


class DBR(Purifier):
    """D-BR: backdoor removal by unlearning and relearning, for classifiers, with the untrusted training set.

    The data is split into clean (D_c), uncertain and poisoned (D_p) by `FCT` in the suspect itself, or D_p is what the
    user suspects (`ImageSet.suspected`). Then the loss on D_p is raised and the loss on D_c lowered, in turns (the
    paper's alternation ``max_theta CE(D_p)``, ``min_theta CE(D_c)``). Where the split finds no evidence of poison, the
    network is given back as it was.

    ``form="published"`` is the paper's: gradient ascent on the cross-entropy of all of D_p, then descent on all of D_c,
    batch norm in training mode, both augmented. It leaves a backdoor that is confident and survives batch statistics.

    Differs from the paper, with the default ``form="unlikelihood"``:
        - On D_p, ``-log(1 - p_y)`` is lowered, whose gradient does not vanish at ``p_y = 1``; images whose observed
          label is no likelier than by chance are left alone, and unlearning rests while few hold on to it.
        - The weight of the loss on D_p grows, up to 2.5 times, while a round leaves most of D_p as it was.
        - What is relearned on D_c is mostly the suspect's own prediction, not the label: a few hundred images would
          else be learned by heart.
        - The two alternate within every step, not every epoch.
        - Batches are of 32 images, not 128. The learning rate falls by a cosine. Gradients are clipped: those of
          ``-log(1 - p_y)`` are a hundred times those of the cross-entropy at first.
        - Batch norm and dropout stay in eval mode: the statistics of poisoned batches hide the trigger.
        - D_p is not augmented: a crop may cut a trigger away.
        - The last round is returned (the release takes the best by test accuracy and success rate).

    In both forms the split is made in the suspect (the paper trains a second network for it), and by the distribution
    of the scores (see `FCT`).

    Example:
        >>> DBR(form="published").schedule(1000)
        {'batch_size': 128, 'rounds': 20, 'learning_rate': 0.0001, 'unlearn_weight': 1.0}
    """

    name: ClassVar[str] = "d-br"
    summary: ClassVar[str] = "split the training set in the suspect, unlearn the poisoned part, relearn the clean one"
    paper: ClassVar[Paper] = Paper(
        "Effective Backdoor Defense by Exploiting Sensitivity of Poisoned Samples",
        "Chen, Wu, Wang; NeurIPS 2022",
        "https://openreview.net/forum?id=AsH-Tx2U0Ug",
    )
    kinds: ClassVar[frozenset[ModelKind]] = frozenset({"classifier"})
    needs: ClassVar[frozenset[Need]] = frozenset({Need.MODEL, Need.IMAGES, Need.LABELS})
    minimum_images: ClassVar[int] = 64
    takes_suspected: ClassVar[bool] = True

    form: Literal["unlikelihood", "published"] = Field(
        "unlikelihood", description="how D_p is unlearned", json_schema_extra={"paper": "published"}
    )
    rounds: int | None = Field(
        None,
        ge=1,
        description="passes over D_c; when left out 10, or more to make 300 steps (unlikelihood), or 20 (published)",
        json_schema_extra={"paper": 20},
    )
    batch_size: int | None = Field(
        None,
        ge=2,
        description="images a step, of D_c and of D_p; when left out 32 (unlikelihood) or 128 (published)",
        json_schema_extra={"paper": 128},
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="of SGD; when left out 2e-3 (unlikelihood) or 1e-4 (published)",
        json_schema_extra={"paper": 1e-4},
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(5e-4, ge=0, description="of SGD")
    unlearn_weight: float | None = Field(
        None,
        ge=0,
        description="weight of the loss on D_p at the start; when left out 0.02 (unlikelihood) or 1 (published); "
        "0: only relearn",
        json_schema_extra={"paper": 1.0},
    )
    relearn_weight: float = Field(1.0, ge=0, description="weight of the loss on D_c; 0: only unlearn")
    clip_norm: float = Field(
        1.0,
        gt=0,
        description="unlikelihood: longer gradients are scaled down to this norm",
        json_schema_extra=_NOT_THERE,
    )
    rest_share: float = Field(
        0.02,
        ge=0,
        lt=1,
        description="unlikelihood: unlearning rests in steps in which no more of D_p hold on to their observed label",
        json_schema_extra=_NOT_THERE,
    )
    suspect_weight: float = Field(
        0.9,
        ge=0,
        le=1,
        description="unlikelihood: share of the suspect's own prediction in what is relearned on D_c",
        json_schema_extra=_NOT_THERE,
    )
    crop_padding: int = Field(4, ge=0, description="pixels by which augmented images are shifted at most")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a mirrored image; 0 where left and right differ")
    decision: Literal["auto", "quota"] = Field(
        "auto", description="of FCT: by the scores, or fixed shares", json_schema_extra={"paper": "quota"}
    )
    draws: int = Field(5, ge=1, description="of FCT: transformed copies of an image", json_schema_extra={"paper": 1})
    clean_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="of FCT: share called clean; when left out 0.5 of each class (auto) or 0.2 of all (quota)",
        json_schema_extra={"paper": 0.2},
    )
    poisoned_share: float = Field(0.05, gt=0, lt=1, description="of FCT: share called poisoned (quota)")
    maximum_accuracy_loss: float = Field(
        0.2,
        gt=0,
        le=1,
        description="guard: stop when accuracy on held-out images of D_c has fallen by more",
        json_schema_extra=_NOT_THERE,
    )

    def schedule(self, images: int) -> dict[str, float]:
        """Batch size, rounds, learning rate and weight for so many images of D_c, with what was left out filled in."""
        if self.form == "published":
            batch_size, rounds, learning_rate, weight = self.batch_size or 128, 20, 1e-4, 1.0
        else:
            batch_size, learning_rate, weight = self.batch_size or 32, 2e-3, 0.02
            rounds = max(_ROUNDS, math.ceil(_STEPS / math.ceil(images / batch_size)))
        return {
            "batch_size": batch_size,
            "rounds": self.rounds or rounds,
            "learning_rate": self.learning_rate or learning_rate,
            "unlearn_weight": weight if self.unlearn_weight is None else self.unlearn_weight,
        }

    def purify(self, network: Network, data: ImageSet, engine: Engine) -> Purified:
        """Split, then unlearn and relearn; see the class.

        Raises:
            ConfigError: Both weights are 0.
            DataError: Labels are missing, of one class only, or not the network's, or images have another size; or no
                image is left as clean.
        """
        if self.unlearn_weight == self.relearn_weight == 0:
            raise ConfigError(f"{self.name}: unlearn_weight and relearn_weight are both 0: nothing would be learned.")
        labels = training_labels(data, self.name, classes=network.spec.output_size)
        if data.image_size != network.spec.image_size:
            raise DataError(
                f"{self.name}: images have {data.image_size} px, the network takes {network.spec.image_size} px."
            )
        split = self._split(network, data, engine)
        findings = _findings(split, labels)
        parts = Parts.of(split, labels, engine.generator("d-br/held-out"))
        images = DeviceImages(data, engine.device)
        before = measure(network, images, parts, engine)
        cleaned = copy.deepcopy(network)
        if not len(parts.poisoned):
            return Purified(cleaned, before, before, {}, findings=findings)
        schedule = self.schedule(len(parts.clean))
        batch_size, weight = int(schedule["batch_size"]), schedule["unlearn_weight"]
        crops = PaddedCrops(self.crop_padding, flip=self.flip)
        loss: Loss
        pressure: Pressure | None = None
        if self.form == "published":
            passes = Passes(parts, batch_size)
            loss, count = InTurns(images, passes, crops, weight, self.relearn_weight), passes.images
        else:
            suspect = engine.spread(copy.deepcopy(network).to(engine.device).eval())
            pressure = Pressure(weight, lambda network: match_rate(network, images, parts.poisoned, engine))
            loss, count = (
                Together(
                    suspect,
                    images,
                    parts,
                    crops,
                    pressure,
                    batch_size=batch_size,
                    relearn_weight=self.relearn_weight,
                    suspect_weight=self.suspect_weight,
                    rest_share=self.rest_share,
                ),
                len(parts.clean),
            )
        history = engine.fit(
            "unlearn-relearn",
            cleaned,
            loss,
            images=count,
            batch_size=batch_size,
            epochs=int(schedule["rounds"]),
            optimizer=lambda parameters: SGD(
                parameters, lr=schedule["learning_rate"], momentum=self.momentum, weight_decay=self.weight_decay
            ),
            scheduler=None if self.form == "published" else lambda made, total: CosineAnnealingLR(made, T_max=total),
            clip_norm=None if self.form == "published" else self.clip_norm,
            train_mode=self.form == "published",
            companion=pressure,
            watch=self._guard(images, parts, before, engine),
        )
        after = measure(cleaned, images, parts, engine)
        return Purified(
            cleaned, before, after, {"unlearn-relearn": history}, findings=findings, destroyed=history.stopped
        )

    def _split(self, network: Network, data: ImageSet, engine: Engine) -> Split:
        if data.suspected is not None:
            split = Split(~data.suspected, data.suspected, True, "named by the user")
        else:
            fct = FCT(
                draws=self.draws,
                decision=self.decision,
                clean_share=self.clean_share,
                poisoned_share=self.poisoned_share,
            )
            split = fct.split(fct.score(network, data, engine))
        labels = data.require_labels(self.name)
        if not _mixed(labels[split.clean]):
            raise DataError(
                f"{self.name}: {int(split.poisoned.sum())} of {len(data)} images are taken for poisoned, and the "
                f"{int(split.clean.sum())} clean ones have fewer than two classes: nothing is left to relearn from. "
                "Suspect fewer images, or give more."
            )
        return split

    def _guard(self, images: DeviceImages, parts: Parts, before: dict[str, float | None], engine: Engine) -> Watch:
        accuracy = before["held_out_accuracy"] or 0.0

        def watch(network: nn.Module) -> tuple[dict[str, float], str | None]:
            measured = {
                name: value for name, value in measure(network, images, parts, engine).items() if value is not None
            }
            lost = accuracy - measured["held_out_accuracy"]
            if lost <= self.maximum_accuracy_loss:
                return measured, None
            return measured, (
                f"accuracy on held-out images of the clean split fell by {lost:.1%} (at most "
                f"{self.maximum_accuracy_loss:.0%} allowed): the classifier is being destroyed. Lower learning_rate "
                "or unlearn_weight."
            )

        return watch


def _findings(split: Split, labels: Tensor) -> list[Finding]:
    if not bool(split.poisoned.any()):
        message = f"Nothing was unlearned: {split.reason}. Name suspected images to unlearn them all the same."
        return [Finding(rule="d-br-no-evidence", severity=Severity.NOTE, message=message, evidence=split.counts)]
    counts = torch.bincount(labels[split.poisoned])
    evidence: dict[str, Any] = {
        **split.counts,
        "modal_label": int(counts.argmax()),
        "modal_share": float(counts.max() / counts.sum()),
    }
    message = f"{int(counts.sum())} of {len(labels)} training images are taken for poisoned: {split.reason}."
    found = [Finding(rule="d-br-poisoned-images", severity=Severity.WARNING, message=message, evidence=evidence)]
    classes = torch.bincount(labels) > 0
    missing = torch.nonzero(classes & (torch.bincount(labels[split.clean], minlength=len(classes)) == 0)).flatten()
    if len(missing):
        message = (
            f"No image of class {', '.join(map(str, missing.tolist()))} is in the clean split: the cleaned network may "
            "no longer know it. Give clean images of it, or raise clean_share."
        )
        evidence = {"classes": missing.tolist()}
        found.append(Finding(rule="d-br-missing-class", severity=Severity.WARNING, message=message, evidence=evidence))
    return found


def _mixed(labels: Tensor) -> bool:
    return len(labels) > 0 and bool(labels.min() != labels.max())
