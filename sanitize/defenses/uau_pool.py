"""What UAU has found so far: searches one more change before each round, and hands them out to be unlearned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from sanitize.data import DeviceImages
from sanitize.functional.changes import LARGE_PATCH, SMALL_PATCH, Blends, Changes, Patches, Perturbations
from sanitize.functional.collapse import Found, search
from sanitize.suspects.networks import Network
from sanitize.training import Engine

if TYPE_CHECKING:
    from sanitize.defenses.uau import UAU

Turn = Literal["perturbation", "blend", "small patch", "large patch"]
TURNS: dict[str, tuple[Turn, ...]] = {
    "all": ("perturbation", "blend", "small patch", "large patch"),
    "perturbation": ("perturbation",),
    "blend": ("blend",),
    "patch": ("small patch", "large patch"),
}
SAME_DIRECTION = 0.7  # cosine from which two changes count as sending features to one place


class Pool:
    """The changes found last, and the directions in which they send features; a companion of the unlearning.

    Kinds of changes take turns. Every other time around the suspect itself is searched, from fresh starts: there the
    backdoor stays whole, and each search finds another form of its trigger. In between the network is searched as it
    is, from what the last search of that kind found, and, as soon as directions are known, towards these: what is left
    of a backdoor sends a few images there, too few to make features collapse. A square that was found in the suspect
    beforehand stays to the end.

    Args:
        method: Its settings.
        suspect: Frozen, on the engine's device.
        images: Of the defender.
        image_size: Height and width.
        centre: (D,) mean feature of clean images in the suspect.
        square: Of one colour, as it was found in the suspect; None where none shall be unlearned.
        engine: Precision, and who shares the searches.
    """

    def __init__(
        self,
        method: UAU,
        suspect: Network,
        images: DeviceImages,
        image_size: int,
        centre: Tensor,
        square: Found | None,
        engine: Engine,
    ) -> None:
        self._method, self._suspect, self._images, self._image_size = method, suspect, images, image_size
        self._centre, self._engine = centre, engine
        self._turns = TURNS[method.families]
        self._rounds = 0
        self._latest: dict[Turn, Changes] = {}  # as the network learns, what is left of a change lies near it
        self._found: list[Changes] = []
        self._directions = centre.new_empty(0, len(centre))
        self._square: Changes | None = None
        if square is not None and square.collapse >= method.minimum_collapse_square:
            self._square, self._directions = square.changes, square.direction[None]

    def before_epoch(self, network: nn.Module, generator: torch.Generator) -> dict[str, float]:
        """Search one more."""
        cycle, number = divmod(self._rounds, len(self._turns))
        turn = self._turns[number]
        found = self._search(self._suspect if cycle % 2 == 0 else network, turn, generator)
        self._rounds += 1
        self._latest[turn] = found.changes
        counts = self._counts(found, turn)
        if counts:
            self._found = [*self._found, found.changes][-self._method.pool_size :]
        if found.alignment is not None:
            return {"collapse": found.collapse, "alignment": found.alignment}
        if counts and not bool((self._directions @ found.direction > SAME_DIRECTION).any()):
            self._directions = torch.cat([self._directions, found.direction[None]])
        return {"collapse": found.collapse}

    def changed(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """By the newest change, or, in half of all draws, by any; as it was found, or, in half of all draws, varied.

        Where a square was found beforehand, a third of all draws is its own.
        """
        kind, which, form = torch.rand(3, generator=generator).tolist()
        if self._square is not None and (kind > 2 / 3 or not self._found):
            changes = self._square
        elif self._found:
            newest = kind < (0.5 if self._square is None else 1 / 3)
            changes = self._found[-1 if newest else int(which * len(self._found))]
        else:
            return clean
        with torch.no_grad():
            return changes(clean)[0] if form < 0.5 else changes.varied(clean, generator)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {
            "rounds": self._rounds,
            "latest": {turn: changes.state_dict() for turn, changes in self._latest.items()},
            "found": [changes.state_dict() for changes in self._found],
            "directions": self._directions,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        self._rounds = state["rounds"]
        self._latest = {turn: self._restored(values) for turn, values in state["latest"].items()}
        self._found = [self._restored(values) for values in state["found"]]
        self._directions = state["directions"].to(self._centre)

    def _search(self, network: nn.Module, turn: Turn, generator: torch.Generator) -> Found:
        of_suspect = network is self._suspect
        directions = None if of_suspect or not len(self._directions) else self._directions
        with self._engine.fabric.autocast():
            return search(
                self._engine.spread(network),
                self._images.pixels,
                len(self._images),
                lambda drawn: self._start(
                    turn,
                    drawn,
                    self._method.bound if directions is None else self._method.directed_bound,
                    None if of_suspect else self._latest.get(turn),
                ),
                self._centre,
                generator,
                directions=directions,
                steps=self._method.search_steps,
                batch_size=self._method.batch_size,
            )

    def _counts(self, found: Found, turn: Turn) -> bool:
        """Whether it is unlearned: otherwise it is one of the weak spots that every network has."""
        if found.alignment is not None:
            return found.alignment >= self._method.minimum_alignment
        method = self._method
        least = method.minimum_collapse_large if turn == "large patch" else method.minimum_collapse
        return found.collapse >= least

    def _start(self, turn: Turn, generator: torch.Generator, bound: float, latest: Changes | None) -> Changes:
        started: Any  # of one turn, so that what was found last is of its kind
        if turn == "perturbation":
            started = Perturbations.start(self._method.starts, self._image_size, bound, generator)
        elif turn == "blend":
            started = Blends.start(self._method.starts, self._image_size, _share(bound), generator)
        else:
            started = Patches.start(self._image_size, SMALL_PATCH if turn == "small patch" else LARGE_PATCH, generator)
        on_device: Changes = started.to(self._centre.device)
        return on_device if latest is None else on_device.joined(latest)

    def _restored(self, values: dict[str, Tensor]) -> Changes:
        restored: Changes
        if "places" in values:
            restored = Patches(values["values"], values["places"], self._image_size)
        elif "share" in values:
            restored = Blends(values["values"], float(values["share"]))
        else:
            restored = Perturbations(values["values"], float(values["bound"]))
        return restored.to(self._centre.device)


def _share(bound: float) -> float:
    """Of a picture that changes a mid-grey pixel by `bound` at most."""
    return min(1.0, 2 * bound)
