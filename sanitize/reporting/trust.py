"""Pictures of what a training trusted: its losses with the cut, the balance of the classes, what it did not trust."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from matplotlib.figure import Figure as Canvas
from torch import Tensor

from sanitize.data.images import ImageSet
from sanitize.detection.base import Scores, Split
from sanitize.reporting.evidence import gallery
from sanitize.reporting.figures import COLORS, Figure, label_axes, to_png
from sanitize.reporting.wording import plain
from sanitize.trainers.base import Filtering

_BINS = 60
_FLOOR = 1e-8  # smaller losses are shown as this


def loss_distribution(moment: str, filtering: Filtering, poisoned: Tensor | None) -> Figure:
    """Losses of all images with the largest one that is trusted; poisoned ones apart where they are known.

    Args:
        moment: Of the training.
        filtering: Its decision.
        poisoned: (N,) bool, the truth, or None.
    """
    losses = filtering.losses.clamp_min(_FLOOR).log10()
    cut = float(filtering.losses[filtering.trusted].max())
    if poisoned is None:
        groups = {"trusted": (filtering.trusted, COLORS[2]), "not trusted": (~filtering.trusted, COLORS[4])}
    else:
        groups = {"clean": (~poisoned, COLORS[5]), "poisoned": (poisoned, COLORS[1])}
    canvas = Canvas(figsize=(5.5, 3.4), layout="constrained")
    axes = canvas.subplots()
    label_axes(axes, f"Losses ({moment})", "loss (log10)", "images")
    edges = torch.linspace(float(losses.min()), max(float(losses.max()), float(losses.min()) + 1e-6), _BINS + 1)
    axes.hist(
        [losses[rows].numpy() for rows, _ in groups.values()],
        bins=edges.tolist(),
        stacked=True,
        color=[color for _, color in groups.values()],
        label=list(groups),
    )
    axes.axvline(math.log10(max(cut, _FLOOR)), color="black", linestyle="--", linewidth=1.2, label="cut")
    axes.legend(fontsize=8, frameon=False)
    medians = ", ".join(
        f"{name} {float(filtering.losses[rows].median()):.3g}" for name, (rows, _) in groups.items() if rows.any()
    )
    trusted, total = int(filtering.trusted.sum()), len(losses)
    return Figure(
        f"losses-of-images-{moment}",
        f"Losses of all images ({plain(moment)}) with the largest that is trusted; lower is more trusted.",
        f"Histogram of the losses. {trusted} of {total} images are trusted, with losses up to {cut:.3g}; medians: "
        f"{medians}.",
        to_png(canvas),
    )


def class_balance(moment: str, filtering: Filtering, data: ImageSet) -> Figure:
    """How many images of each observed label are trusted.

    Args:
        moment: Of the training.
        filtering: Its decision.
        data: The images with their observed labels.
    """
    labels = data.require_labels("the balance of the classes")
    count = int(labels.max()) + 1
    total = torch.bincount(labels, minlength=count)
    trusted = torch.bincount(labels[filtering.trusted], minlength=count)
    names = [plain(data.class_names[number])[:12] if data.class_names else str(number) for number in range(count)]
    canvas = Canvas(figsize=(max(5.5, min(24.0, 0.35 * count)), 3.4), layout="constrained")
    axes = canvas.subplots()
    label_axes(axes, f"Trusted images of each label ({moment})", "observed label", "images")
    axes.bar(range(count), total.tolist(), color=COLORS[5], label="all")
    axes.bar(range(count), trusted.tolist(), color=COLORS[2], width=0.5, label="trusted")
    axes.set_ylim(top=1.25 * max(total.tolist()))  # room for the legend
    axes.set_xticks(range(count), names, rotation=60 if max(map(len, names)) > 3 else 0, fontsize=7, parse_math=False)
    axes.legend(fontsize=8, frameon=False)
    shares = trusted / total.clamp_min(1)
    lowest = int(torch.where(total > 0, shares, torch.inf).argmin())
    return Figure(
        f"trusted-classes-{moment}",
        f"Images of each observed label, and those of them that are trusted ({plain(moment)}).",
        f"Bars of {count} labels. The label that is trusted least is {names[lowest]}: {int(trusted[lowest])} of "
        f"{int(total[lowest])} images.",
        to_png(canvas),
    )


def least_trusted(moment: str, filtering: Filtering, data: ImageSet) -> Figure:
    """The images with the highest losses.

    Args:
        moment: Of the training.
        filtering: Its decision.
        data: The images with their observed labels.
    """
    split = Split(filtering.trusted, ~filtering.trusted, False, "losses")
    made = gallery(data, Scores(filtering.losses, data.labels), split)
    title = f"The images that were trusted least ({plain(moment)}), with their rows and observed labels."
    return replace(made, name=f"least-trusted-{moment}", title=title)
