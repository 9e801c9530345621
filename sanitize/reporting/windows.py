"""Pictures of windows that were tried on other images: their scores, what they show, and whom they pull."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle

from sanitize.data.images import ImageSet
from sanitize.detection.window_search import WindowScores
from sanitize.reporting.figures import COLORS, Figure, label_axes, to_png

_BINS = 50
_COLUMNS = 10
_CLUSTERS = 30  # that are shown


def window_scores(scores: WindowScores) -> Figure:
    """The flip scores with that of the last candidate trigger, and what the classifier says with its threshold.

    Args:
        scores: Of windows.
    """
    tried = scores.values[scores.flips > 0].numpy()
    lowest = float(scores.values[scores.top].min())
    canvas = Canvas(figsize=(4.5 * (1 + (scores.poison is not None)), 3.4), layout="constrained")
    panels = canvas.subplots(1, 1 + (scores.poison is not None), squeeze=False)[0]
    label_axes(panels[0], "windows", "share of images flipped into the own cluster", "images")
    panels[0].hist(tried, bins=_BINS, color=COLORS[0])
    panels[0].axvline(lowest, color="black", linestyle=":", linewidth=1.2, label=f"last of the top {len(scores.top)}")
    required = scores.evidence.thresholds.score
    panels[0].axvline(required, color="black", linestyle="--", linewidth=1.2, label="threshold of the top mean")
    told = f"{len(tried)} windows; the top {len(scores.top)} flip {lowest:.0%} or more"
    if scores.poison is not None:
        label_axes(panels[1], "poison classifier", "probability", "images")
        panels[1].hist(scores.poison.numpy(), bins=_BINS, range=(0, 1), color=COLORS[1])
        panels[1].axvline(0.5, color="black", linestyle="--", linewidth=1.2, label="threshold")
        told += f"; the classifier takes {int((scores.poison > 0.5).sum())} images for poisoned"
    for axes in panels:
        axes.set_yscale("log")
        axes.legend(fontsize=8, frameon=False)
    return Figure("scores", "Distribution of the scores.", f"Histograms. {told}.", to_png(canvas))


def window_gallery(data: ImageSet, scores: WindowScores) -> Figure:
    """The candidate triggers: their images with the window, and below the attention map over the image.

    Args:
        data: The images.
        scores: Of windows.
    """
    rows = scores.top.tolist()
    lines = -(-len(rows) // _COLUMNS)
    canvas = Canvas(figsize=(_COLUMNS * 1.1, lines * 2.6), layout="constrained")
    panels = canvas.subplots(2 * lines, _COLUMNS, squeeze=False)
    for axes in panels.ravel():
        axes.set_axis_off()
    for number, row in enumerate(rows):
        line, column = divmod(number, _COLUMNS)
        image = data.images[row].permute(1, 2, 0).numpy()
        above, below = panels[2 * line, column], panels[2 * line + 1, column]
        above.imshow(image, interpolation="nearest")
        top, left = scores.corners[row].tolist()
        side = scores.window
        above.add_patch(Rectangle((left - 0.5, top - 0.5), side, side, fill=False, edgecolor=COLORS[1], linewidth=1.5))
        above.set_title(f"{row}: {float(scores.values[row]):.2f}", fontsize=7)
        below.imshow(image.mean(axis=2), cmap="gray", interpolation="nearest")
        below.imshow(scores.maps[number].numpy(), cmap="inferno", alpha=0.6, interpolation="nearest")
    title = "triggers" if scores.evidence.convincing else "kept: there was no evidence"
    return Figure(
        "windows",
        f"The {len(rows)} windows with the highest scores ({title}), with rows and scores; below, where the images "
        "depend on.",
        f"A gallery of {len(rows)} images with windows, rows {', '.join(map(str, rows))}.",
        to_png(canvas),
    )


def flips_by_cluster(scores: WindowScores) -> Figure:
    """The best and the mean score of the windows of each cluster, for those clusters that have the best ones.

    Args:
        scores: Of windows.
    """
    tried = scores.flips > 0
    groups = {n: scores.values[tried & (scores.clusters == n)] for n in sorted(set(scores.clusters[tried].tolist()))}
    shown = sorted(groups, key=lambda number: -float(groups[number].max()))[:_CLUSTERS]
    best, mean = ([float(getattr(groups[number], name)()) for number in shown] for name in ("max", "mean"))
    canvas = Canvas(figsize=(max(4.5, 0.25 * len(shown) + 1), 3.4), layout="constrained")
    axes = canvas.subplots()
    label_axes(axes, "flips by cluster", "cluster", "share of images flipped")
    axes.bar(np.arange(len(shown)), best, color=COLORS[5], label="best window")
    axes.bar(np.arange(len(shown)), mean, color=COLORS[0], label="mean", width=0.5)
    axes.set_xticks(np.arange(len(shown)), [f"{n} ({len(groups[n])})" for n in shown], rotation=90, fontsize=6)
    axes.legend(fontsize=8, frameon=False)
    return Figure(
        "flips",
        f"Flips into the own cluster, by cluster (number of windows tried); the {len(shown)} with the best windows.",
        f"Bars. Cluster {shown[0]} has the best window, which flips {best[0]:.0%} of the images.",
        to_png(canvas),
    )
