"""Pictures of what a detector saw in a data set: the distribution of the scores, and the most suspicious images."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure as Canvas
from torch import Tensor

from sanitize.data.images import ImageSet
from sanitize.detection.base import Scores, Split
from sanitize.detection.window_search import WindowScores
from sanitize.reporting.figures import COLORS, Figure, label_axes, to_png
from sanitize.reporting.windows import flips_by_cluster, window_gallery, window_scores
from sanitize.reporting.wording import plain

_BINS = 50
_PANELS = 4  # suspected classes that are shown on their own
_SHOWN, _COLUMNS = 24, 8  # images of the gallery


def pictures(data: ImageSet, scores: Scores, split: Split) -> tuple[Figure, ...]:
    """All pictures of a job.

    Args:
        data: The images.
        scores: Of them.
        split: The decision.
    """
    if isinstance(scores, WindowScores):
        return (
            window_scores(scores),
            window_gallery(data, scores),
            flips_by_cluster(scores),
            gallery(data, scores, split),
        )
    return histogram(scores, split), gallery(data, scores, split)


def histogram(scores: Scores, split: Split) -> Figure:
    """The scores of all images, and of each class among whose images poisoned ones were found, with the thresholds.

    Args:
        scores: Of the images.
        split: The decision, whose groups are coloured.
    """
    groups: list[tuple[str, np.ndarray]] = [("all images", np.ones(len(scores.values), dtype=bool))]
    if scores.labels is not None:
        labels = scores.labels.numpy()
        groups += [(f"label {label}", labels == label) for label in split.classes[:_PANELS]]
    values = np.log10(np.maximum(scores.values.numpy(), 1e-12))
    parts = {name: getattr(split, name).numpy() for name in ("clean", "uncertain", "poisoned")}
    edges = np.linspace(values.min(), max(values.max(), values.min() + 1e-6), _BINS + 1)
    canvas = Canvas(figsize=(4.5 * len(groups), 3.4), layout="constrained")
    summary = []
    for axes, (title, rows) in zip(canvas.subplots(1, len(groups), squeeze=False)[0], groups, strict=True):
        label_axes(axes, title, "score (log10)", "images")
        axes.hist(
            [values[rows & part] for part in parts.values()],
            bins=edges,
            stacked=True,
            color=[COLORS[2], COLORS[5], COLORS[1]],
            label=list(parts),
        )
        found = values[rows & parts["poisoned"]]
        if len(found) and (title != "all images" or len(groups) == 1):
            axes.axvline(found.min(), color="black", linestyle="--", linewidth=1.2, label="threshold")
            summary.append(f"{title}: {len(found)} images from a score of {10 ** found.min():.3g}")
        axes.legend(fontsize=8, frameon=False)
    alt = "Histogram of the scores. " + ("; ".join(summary) if summary else "No threshold was drawn")
    return Figure("scores", "Distribution of the scores; higher is more suspicious.", f"{alt}.", to_png(canvas))


def gallery(data: ImageSet, scores: Scores, split: Split) -> Figure:
    """The images with the highest scores, of those that were found poisoned where there are any.

    Args:
        data: The images.
        scores: Of them.
        split: The decision.
    """
    values = scores.values.clone()
    if bool(split.poisoned.any()):
        values[~split.poisoned] = -1.0
    count = min(_SHOWN, int(split.poisoned.sum()) or _SHOWN, len(data))
    rows = values.argsort(descending=True, stable=True)[:count].tolist()
    lines = -(-count // _COLUMNS)
    canvas = Canvas(figsize=(_COLUMNS * 1.1, lines * 1.35), layout="constrained")
    panels = canvas.subplots(lines, _COLUMNS, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, row in zip(panels, rows, strict=False):
        axes.imshow(_pixels(data.images[row]), interpolation="nearest")
        axes.set_title(_caption(data, row), fontsize=7, parse_math=False)
    title = "removed" if bool(split.poisoned.any()) else "kept: there was no evidence"
    return Figure(
        "most-suspicious",
        f"The {count} images with the highest scores ({title}), with their rows and labels.",
        f"A gallery of {count} images, rows {', '.join(map(str, rows))}.",
        to_png(canvas),
    )


def _pixels(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


def _caption(data: ImageSet, row: int) -> str:
    if data.labels is None:
        return f"{row}"
    label = int(data.labels[row])
    return f"{row}: {plain(data.class_names[label] if data.class_names else label)[:12]}"
