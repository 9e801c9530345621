"""What D-BR works on: the clean part, what of it is held out, the poisoned part; and what it measures on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sanitize.data import DeviceImages
from sanitize.detection import Split
from sanitize.training import Engine

HELD_OUT = 10  # one in so many images of D_c is kept for the measures


@dataclass(frozen=True)
class Parts:
    """Rows of the data: D_c without what is held out, that, and D_p; the commonest label of D_p."""

    clean: Tensor
    held_out: Tensor
    poisoned: Tensor
    modal_label: int | None

    @classmethod
    def of(cls, split: Split, labels: Tensor, generator: torch.Generator) -> Parts:
        """Hold out one in `HELD_OUT` images of each class of D_c."""
        rows, poisoned = torch.nonzero(split.clean).flatten(), torch.nonzero(split.poisoned).flatten()
        rows = rows[torch.randperm(len(rows), generator=generator)]
        rows = rows[labels[rows].argsort(stable=True)]  # class by class, so that each is held out alike
        held_out = torch.arange(len(rows)) % HELD_OUT == 0
        modal = int(labels[poisoned].mode().values) if len(poisoned) else None
        return cls(rows[~held_out], rows[held_out], poisoned, modal)


def labels_of(images: DeviceImages, rows: Tensor) -> Tensor:
    """Observed labels of some images, where the images are."""
    assert images.labels is not None  # purify() has seen to it
    return images.labels[rows.to(images.device)]


def match_rate(network: nn.Module, images: DeviceImages, rows: Tensor, engine: Engine) -> float:
    """Share of some images that get their observed label."""
    return float(_right(network, images, rows, engine).mean())


def _right(network: nn.Module, images: DeviceImages, rows: Tensor, engine: Engine) -> Tensor:
    logits = engine.forward(network, lambda indices: images.pixels(rows[indices]), len(rows))
    return (logits.argmax(dim=1) == labels_of(images, rows).cpu()).float()


def measure(network: nn.Module, images: DeviceImages, parts: Parts, engine: Engine) -> dict[str, float | None]:
    """What can be told without the trigger; see docs/methods/d-br.md."""
    held_out = _right(network, images, parts.held_out, engine)
    of_label = None if parts.modal_label is None else labels_of(images, parts.held_out).cpu() == parts.modal_label
    return {
        "poison_match_rate": match_rate(network, images, parts.poisoned, engine) if len(parts.poisoned) else None,
        "held_out_accuracy": float(held_out.mean()),
        "modal_label_recall": None if of_label is None or not of_label.any() else float(held_out[of_label].mean()),
    }
