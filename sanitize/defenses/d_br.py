"""D-BR: split the untrusted training set in the suspect, unlearn the poisoned part and relearn the clean one."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, JsonValue
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from sanitize.data import DeviceImages, ImageSet, batches
from sanitize.data.crops import PaddedCrops
from sanitize.data.labels import training_labels
from sanitize.defenses.base import Need, Paper, Purified, Purifier
from sanitize.detection import FCT, Split
from sanitize.errors import DataError
from sanitize.suspects.networks import Network
from sanitize.training import Engine, Loss, Watch
from sanitize.types import Finding, ModelKind, Severity

_STUBBORN, _GROWTH = 0.1, 2.5  # see _Pressure
_ROUNDS, _STEPS = 10, 300  # of the unlikelihood form
HELD_OUT = 10  # one in so many images of D_c is kept for the measures
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
        - On D_p, ``-log(1 - p_y)`` is lowered, whose gradient does not vanish at ``p_y = 1``; images that no longer get
          their observed label are left alone, and unlearning rests while few do.
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
        gt=0,
        description="weight of the loss on D_p at the start; when left out 0.02 (unlikelihood) or 1 (published)",
        json_schema_extra={"paper": 1.0},
    )
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
        description="unlikelihood: unlearning rests in steps in which no more of D_p get their observed label",
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
            "unlearn_weight": self.unlearn_weight or weight,
        }

    def purify(self, network: Network, data: ImageSet, engine: Engine) -> Purified:
        """Split, then unlearn and relearn; see the class.

        Raises:
            DataError: Labels are missing, of one class only, or not the network's, or images have another size; or no
                image is left as clean.
        """
        labels = training_labels(data, self.name, classes=network.spec.output_size)
        if data.image_size != network.spec.image_size:
            raise DataError(
                f"{self.name}: images have {data.image_size} px, the network takes {network.spec.image_size} px."
            )
        split = self._split(network, data, engine)
        findings = _findings(split, labels)
        parts = _Parts.of(split, labels, engine.generator("d-br/held-out"))
        images = DeviceImages(data, engine.device)
        before = _measure(network, images, parts, engine)
        cleaned = copy.deepcopy(network)
        if not len(parts.poisoned):
            return Purified(cleaned, before, before, {}, findings=findings)
        schedule = self.schedule(len(parts.clean))
        loss, count = self._published(images, parts)
        pressure: _Pressure | None = None
        if self.form == "unlikelihood":
            suspect = copy.deepcopy(network).to(engine.device).eval()
            pressure = _Pressure(
                schedule["unlearn_weight"], lambda network: _match_rate(network, images, parts.poisoned, engine)
            )
            loss, count = self._unlikelihood(suspect, images, parts, pressure), len(parts.clean)
        history = engine.fit(
            "unlearn-relearn",
            cleaned,
            loss,
            images=count,
            batch_size=int(schedule["batch_size"]),
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
        after = _measure(cleaned, images, parts, engine)
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

    def _unlikelihood(self, suspect: Network, images: DeviceImages, parts: _Parts, pressure: _Pressure) -> Loss:
        crops, schedule = PaddedCrops(self.crop_padding, flip=self.flip), self.schedule(len(parts.clean))
        count = min(int(schedule["batch_size"]), len(parts.poisoned))

        def loss(module: nn.Module, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            kept = parts.clean[indices]
            drawn = parts.poisoned[torch.randint(len(parts.poisoned), (count,), generator=generator)]
            views = crops(images.pixels(kept), generator)
            logits = module(torch.cat([views, images.pixels(drawn)]))
            relearn = self._relearn(logits[: len(kept)], _labels(images, kept), suspect, views)
            unlearn, matching = unlikelihood(logits[len(kept) :], _labels(images, drawn))
            unlearn = unlearn * (matching > self.rest_share)
            return {
                "loss": relearn + pressure.weight * unlearn,
                "relearn": relearn,
                "unlearn": unlearn,
                "matching": matching,
            }

        return loss

    def _relearn(self, logits: Tensor, labels: Tensor, suspect: Network, views: Tensor) -> Tensor:
        with torch.no_grad():
            taught = suspect(views).float().softmax(dim=1)
        wanted = torch.lerp(one_hot(labels, logits.shape[1]).to(taught), taught, self.suspect_weight)
        return cross_entropy(logits, wanted)

    def _published(self, images: DeviceImages, parts: _Parts) -> tuple[Loss, int]:
        crops, schedule = PaddedCrops(self.crop_padding, flip=self.flip), self.schedule(len(parts.clean))
        weight = schedule["unlearn_weight"]
        passes = _Passes(parts, int(schedule["batch_size"]))

        def loss(module: nn.Module, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            sign, rows = passes.next(generator)
            value = cross_entropy(module(crops(images.pixels(rows), generator)), _labels(images, rows))
            return {"loss": value if sign > 0 else -weight * value}

        return loss, passes.images

    def _guard(self, images: DeviceImages, parts: _Parts, before: dict[str, float | None], engine: Engine) -> Watch:
        accuracy = before["held_out_accuracy"] or 0.0

        def watch(network: nn.Module) -> tuple[dict[str, float], str | None]:
            measured = {
                name: value for name, value in _measure(network, images, parts, engine).items() if value is not None
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


def unlikelihood(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of ``-log(1 - p_y)`` over the images that get the label y, and the share of these.

    The loss raises the loss on y as gradient ascent does, but is bounded below by 0, and its gradient by the logit of y
    is p_y: large where the network is sure.

    Args:
        logits: (N, C), C 2 or more.
        labels: (N,) y.

    Returns:
        Scalar, 0 or more (0 where no image gets its label); scalar in [0, 1].

    Example:
        >>> unlikelihood(torch.tensor([[9.0, 0.0], [0.0, 9.0]]), torch.tensor([0, 0]))
        (tensor(9.0001), tensor(0.5000))
    """
    logits = logits.float()  # 1 - p of a confident network is 0 in half precision
    others = logits.scatter(1, labels[:, None], -torch.inf)
    values = logits.logsumexp(dim=1) - others.logsumexp(dim=1)
    matching = (logits.argmax(dim=1) == labels).float()
    return (values * matching).sum() / matching.sum().clamp_min(1), matching.mean()


@dataclass(frozen=True)
class _Parts:
    """Rows of the data: D_c without what is held out, that, and D_p; the commonest label of D_p."""

    clean: Tensor
    held_out: Tensor
    poisoned: Tensor
    modal_label: int | None

    @classmethod
    def of(cls, split: Split, labels: Tensor, generator: torch.Generator) -> _Parts:
        rows, poisoned = torch.nonzero(split.clean).flatten(), torch.nonzero(split.poisoned).flatten()
        rows = rows[torch.randperm(len(rows), generator=generator)]
        rows = rows[labels[rows].argsort(stable=True)]  # class by class, so that each is held out alike
        held_out = torch.arange(len(rows)) % HELD_OUT == 0
        modal = int(labels[poisoned].mode().values) if len(poisoned) else None
        return cls(rows[~held_out], rows[held_out], poisoned, modal)


class _Pressure:
    """Weight of the loss on D_p: doubled while a round leaves most of D_p as it was, up to 2.5 times its start.

    Networks differ in how hard they hold on to a trigger, and a weight that removes it from all of them would destroy
    some. What decides is the match rate on D_p, which needs no trigger.
    """

    def __init__(self, weight: float, match_rate: Callable[[nn.Module], float]) -> None:
        self.weight = weight
        self.limit = _GROWTH * weight
        self.match_rate = match_rate
        self.last: float | None = None

    def before_epoch(self, network: nn.Module, generator: torch.Generator) -> dict[str, float]:
        now = self.match_rate(network)
        if self.last is not None and now > max(_STUBBORN, self.last / 2):
            self.weight = min(self.limit, 2 * self.weight)
        self.last = now
        return {"unlearn_weight": self.weight}

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight, "last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weight, self.last = state["weight"], state["last"]


class _Passes:
    """All batches of D_p, then all of D_c, in every epoch.

    What is still to come is forgotten at the end of an epoch, when the engine writes its checkpoint.
    """

    def __init__(self, parts: _Parts, batch_size: int) -> None:
        self.parts = parts
        self.batch_size = batch_size
        self.images = batch_size * sum(-(-len(rows) // batch_size) for rows in (parts.poisoned, parts.clean))
        self._waiting: list[tuple[int, Tensor]] = []

    def next(self, generator: torch.Generator) -> tuple[int, Tensor]:
        """-1 and rows of D_p, or 1 and rows of D_c."""
        if not self._waiting:
            for sign, rows in ((-1, self.parts.poisoned), (1, self.parts.clean)):
                self._waiting += [(sign, rows[batch]) for batch in batches(len(rows), self.batch_size, generator)]
        return self._waiting.pop(0)


def _labels(images: DeviceImages, rows: Tensor) -> Tensor:
    assert images.labels is not None  # purify() has seen to it
    return images.labels[rows.to(images.device)]


def _match_rate(network: nn.Module, images: DeviceImages, rows: Tensor, engine: Engine) -> float:
    """Share of some images that get their observed label."""
    return float(_right(network, images, rows, engine).mean())


def _right(network: nn.Module, images: DeviceImages, rows: Tensor, engine: Engine) -> Tensor:
    logits = engine.forward(network, lambda indices: images.pixels(rows[indices]), len(rows))
    return (logits.argmax(dim=1) == _labels(images, rows).cpu()).float()


def _measure(network: nn.Module, images: DeviceImages, parts: _Parts, engine: Engine) -> dict[str, float | None]:
    """What can be told without the trigger; see docs/methods/d-br.md."""
    held_out = _right(network, images, parts.held_out, engine)
    of_label = None if parts.modal_label is None else _labels(images, parts.held_out).cpu() == parts.modal_label
    return {
        "poison_match_rate": _match_rate(network, images, parts.poisoned, engine) if len(parts.poisoned) else None,
        "held_out_accuracy": float(held_out.mean()),
        "modal_label_recall": None if of_label is None or not of_label.any() else float(held_out[of_label].mean()),
    }


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
