"""The two ways in which D-BR unlearns: by unlikelihood beside relearning, and as published, by ascent in turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from sanitize.data import DeviceImages, batches
from sanitize.data.crops import PaddedCrops
from sanitize.defenses.unlearning_parts import Parts, labels_of
from sanitize.functional.unlikelihood import unlikelihood

_STUBBORN, _GROWTH = 0.1, 2.5  # see Pressure


class Together:
    """Loss of one step: D_c is relearned and some of D_p unlearned at once.

    Args:
        suspect: Whose predictions are relearned, in eval mode on the device.
        images: The data.
        parts: Of the data.
        crops: Augmentation of D_c; a crop of D_p may cut the trigger away.
        pressure: Weight of the loss on D_p.
        batch_size: Images of D_p a step.
        relearn_weight: Of the loss on D_c.
        suspect_weight: Share of the suspect's prediction in what is relearned; the rest is the label.
        rest_share: Unlearning rests in steps in which no more of D_p hold on to their label.
    """

    def __init__(
        self,
        suspect: Callable[[Tensor], Tensor],
        images: DeviceImages,
        parts: Parts,
        crops: PaddedCrops,
        pressure: Pressure,
        *,
        batch_size: int,
        relearn_weight: float,
        suspect_weight: float,
        rest_share: float,
    ) -> None:
        self.suspect = suspect
        self.images = images
        self.parts = parts
        self.crops = crops
        self.pressure = pressure
        self.count = min(batch_size, len(parts.poisoned))
        self.relearn_weight = relearn_weight
        self.suspect_weight = suspect_weight
        self.rest_share = rest_share

    def __call__(self, module: nn.Module, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Terms of the step for a batch of D_c."""
        kept = self.parts.clean[indices]
        drawn = self.parts.poisoned[torch.randint(len(self.parts.poisoned), (self.count,), generator=generator)]
        views = self.crops(self.images.pixels(kept), generator)
        logits = module(torch.cat([views, self.images.pixels(drawn)]))
        relearn = self._relearn(logits[: len(kept)], labels_of(self.images, kept), views)
        unlearn, holding = unlikelihood(logits[len(kept) :], labels_of(self.images, drawn))
        unlearn = unlearn * (holding > self.rest_share)
        return {
            "loss": self.relearn_weight * relearn + self.pressure.weight * unlearn,
            "relearn": relearn,
            "unlearn": unlearn,
            "holding": holding,
        }

    def _relearn(self, logits: Tensor, labels: Tensor, views: Tensor) -> Tensor:
        with torch.no_grad():
            taught = self.suspect(views).float().softmax(dim=1)
        wanted = torch.lerp(one_hot(labels, logits.shape[1]).to(taught), taught, self.suspect_weight)
        return cross_entropy(logits, wanted)


class InTurns:
    """Loss of one step as published: ascent on a batch of D_p, or descent on a batch of D_c.

    Args:
        images: The data.
        passes: What comes next.
        crops: Augmentation of both.
        unlearn_weight: Of the ascent.
        relearn_weight: Of the descent.
    """

    def __init__(
        self, images: DeviceImages, passes: Passes, crops: PaddedCrops, unlearn_weight: float, relearn_weight: float
    ) -> None:
        self.images = images
        self.passes = passes
        self.crops = crops
        self.weights = {-1: -unlearn_weight, 1: relearn_weight}

    def __call__(self, module: nn.Module, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Terms of the step; which images it takes is for the passes to say."""
        sign, rows = self.passes.next(generator)
        value = cross_entropy(module(self.crops(self.images.pixels(rows), generator)), labels_of(self.images, rows))
        return {"loss": self.weights[sign] * value}


class Pressure:
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
        """Weight of the round."""
        now = self.match_rate(network)
        if self.last is not None and now > max(_STUBBORN, self.last / 2):
            self.weight = min(self.limit, 2 * self.weight)
        self.last = now
        return {"unlearn_weight": self.weight}

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"weight": self.weight, "last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.weight, self.last = state["weight"], state["last"]


class Passes:
    """All batches of D_p, then all of D_c, in every epoch.

    What is still to come is forgotten at the end of an epoch, when the engine writes its checkpoint.
    """

    def __init__(self, parts: Parts, batch_size: int) -> None:
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
