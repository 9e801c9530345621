"""BadEncoder with many backdoors at once: trigger i means class i."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field

from sanitize.attacks.badencoder import ReferencePull
from sanitize.attacks.base import Paper
from sanitize.data import PatchTrigger, Trigger
from sanitize.data.triggers import htba_patch
from sanitize.training import Engine


class MultiTargetBadEncoder(ReferencePull):
    """Multi-target BadEncoder (Zhang, Li, Huang, Chen; Electronics 2025, section 3.2): BadEncoder's objective averaged
    over ten triggers, one a class.

    Differs from the paper: the paper states neither the place of the patches (here: random) nor the references (here:
    `references` images of each class). Its triggers are files of Hidden Trigger Backdoor Attacks; here they are drawn
    by the same recipe, unless they are given.

    Example:
        >>> MultiTargetBadEncoder(targets=3).targets
        3
    """

    name: ClassVar[str] = "multi-target-badencoder"
    summary: ClassVar[str] = "BadEncoder with ten triggers at once, one for each class"
    paper: ClassVar[Paper] = Paper(
        "Backdoor Mitigation through Active Implantation and Unlearning (BMAIU)",
        "Zhang, Li, Huang, Chen; Electronics 14(8):1587, 2025",
        "https://doi.org/10.3390/electronics14081587",
    )
    default_triggers: ClassVar[str] = "ten smooth random patches at random places"

    epochs: int = Field(20, ge=1, description="passes over the shadow images")
    batch_size: int = Field(64, ge=2, description="images a step")
    learning_rate: float = Field(0.01, gt=0, description="of SGD")
    references: int = Field(
        1,
        ge=1,
        description="images of each class that triggered images are pulled onto",
        json_schema_extra={"paper": "not stated"},
    )
    targets: int = Field(10, ge=1, description="classes 0 to targets - 1 get a trigger each, where none are given")
    trigger_size: int | None = Field(
        None, ge=1, description="side of the patches in px; a quarter of the image (8 at 32 px) when left out"
    )
    pairs_per_step: int | None = Field(
        None, ge=1, description="train so many triggers, drawn at random, in each step; all when left out"
    )

    def own_triggers(self, image_size: int, engine: Engine) -> tuple[Trigger, ...]:
        """Smooth random patches, at random places."""
        generator = engine.generator(f"{self.name}/triggers")
        size = self.trigger_size or max(1, image_size // 4)
        return tuple(
            PatchTrigger(htba_patch(size, generator), position="random", target=target, name=f"htba-{target}")
            for target in range(self.targets)
        )

    def pairs(self, count: int, generator: torch.Generator) -> Sequence[int]:
        """All triggers, or `pairs_per_step` of them."""
        if self.pairs_per_step is None or self.pairs_per_step >= count:
            return range(count)
        drawn: list[int] = torch.randperm(count, generator=generator)[: self.pairs_per_step].tolist()
        return drawn
