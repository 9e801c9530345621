"""Pictures of a run as PNG, drawn with matplotlib's object interface: no window, no global state."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from sanitize.reporting.pointing import Panel, Pictures, pointable
from sanitize.reporting.wording import plain

# Okabe and Ito's palette, which stays apart under the common colour-vision deficiencies; markers differ as well.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "^", "s", "D", "v", "P", "X")
_DPI = 150
_SHOWN_POINTS = 1000  # of each group; more hide each other
_COUNTERS = ("epoch", "step", "seconds")


@dataclass(frozen=True)
class Figure:
    """One picture of a report.

    Args:
        name: File name without suffix, for example ``projection``.
        title: Caption.
        alt: What it shows, for those who cannot see it.
        png: The file's bytes.
        markup: The same for the page, where a reader can point at things; empty where the picture is enough.
    """

    name: str
    title: str
    alt: str
    png: bytes
    markup: str = ""


def projection(before: Mapping[str, Tensor], after: Mapping[str, Tensor], pictures: Pictures | None = None) -> Figure:
    """Features of the suspect and of the result in two dimensions.

    Each panel has axes of its own: the first two principal components of all its encoder's features shown (clean and
    triggered together), since coordinates of two encoders do not compare, and axes fitted on clean features alone could
    hide a triggered cluster that lies across them.

    Args:
        before: Group (``clean``, ``triggered``) -> the suspect's features (N, D).
        after: The same groups -> the result's features.
        pictures: Image of a row of the features, to be shown on the page where one points at it.
    """
    canvas = Canvas(figsize=(9, 4.4), layout="constrained")
    panels = canvas.subplots(1, 2)
    separations = []
    for axes, title, groups in zip(panels, ("Before", "After"), (before, after), strict=True):
        separations.append(_scatter(axes, title, groups))
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        legend = canvas.legend(
            handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, markerscale=2
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    alt = "Two scatter plots of features, before and after."
    if None not in separations:
        alt += (
            " Distance of the mean triggered from the mean clean feature, in clean spreads (mean distance of clean "
            "features from their mean): "
            f"{separations[0]:.2f} before, {separations[1]:.2f} after."
        )
    groups_shown = " and ".join(plain(name) for name in before)
    return Figure(
        "projection",
        f"Features of {groups_shown} images before and after: each panel shows the first two principal components, "
        "fitted on all features of its own encoder; axes of the two panels do not compare. One clean spread is the "
        "mean distance of clean features from their mean.",
        alt,
        to_png(canvas),
        pointable([_panel("Before", before), _panel("After", after)], pictures) if pictures else "",
    )


def losses(history: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Loss terms per epoch, one panel a stage.

    Args:
        history: Stage -> one mapping an epoch (term -> value). Terms may come and go; values that are not finite are
            left out.
    """
    stages = {stage: _terms(epochs) for stage, epochs in history.items()}
    canvas = Canvas(figsize=(max(4.5, 4.5 * len(stages)), 3.4), layout="constrained")
    summary = []
    if stages:
        panels = canvas.subplots(1, len(stages), squeeze=False)[0]
        for axes, (stage, terms) in zip(panels, stages.items(), strict=True):
            _curves(axes, stage, terms)
            ends = ", ".join(f"{plain(term)} {ys[0]:.3g} to {ys[-1]:.3g}" for term, (_, ys) in terms.items() if ys)
            summary.append(f"{plain(stage)}: {ends}" if ends else f"{plain(stage)}: no values")
    alt = "Loss terms by epoch. " + "; ".join(summary) if summary else "No losses were recorded."
    return Figure("losses", "Loss terms by epoch, one panel a stage.", f"{alt}.", to_png(canvas))


def picture(name: str, image: Tensor, title: str) -> Figure:
    """A small image, enlarged without smoothing.

    Args:
        name: File name without suffix.
        image: (3, H, W), RGB in [0, 1].
        title: Caption.
    """
    pixels = image.detach().cpu().float().clamp(0, 1).permute(1, 2, 0).numpy()
    height, width = pixels.shape[:2]
    canvas = Canvas(figsize=(1.6, 1.6 * height / width))
    axes = canvas.add_axes((0, 0, 1, 1))
    axes.imshow(pixels, interpolation="nearest")
    axes.set_axis_off()
    return Figure(name, title, f"{plain(title)}: an image of {width} by {height} pixels, enlarged.", to_png(canvas))


def _scatter(axes: Axes, title: str, groups: Mapping[str, Tensor]) -> float | None:
    """Draw one panel; the distance of clean and triggered means in units of the clean spread."""
    shown = {
        name: features.detach().cpu().double()[_thinned(len(features))]
        for name, features in groups.items()
        if len(features)
    }
    label_axes(axes, title, "", "")
    if not shown:
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes)
        return None
    together = torch.cat(list(shown.values()))
    centre, directions, shares = _principal(together)
    for (name, features), color, marker in zip(shown.items(), COLORS, _MARKERS, strict=False):
        points = ((features - centre) @ directions).numpy()
        axes.scatter(
            points[:, 0], points[:, 1], s=14, c=color, marker=marker, alpha=0.55, linewidths=0, label=plain(name)
        )
    label_axes(axes, title, f"component 1 ({shares[0]:.0%} of variance)", f"component 2 ({shares[1]:.0%})")
    if not {"clean", "triggered"} <= shown.keys():
        return None
    clean = shown["clean"]
    spread = (clean - clean.mean(0)).norm(dim=1).mean().clamp_min(1e-12)
    separation = float((shown["triggered"].mean(0) - clean.mean(0)).norm() / spread)
    axes.set_title(f"{title}: triggered mean is {separation:.2f} clean spreads away", fontsize=11, parse_math=False)
    return separation


def _panel(title: str, groups: Mapping[str, Tensor]) -> Panel:
    rows = {name: _thinned(len(features)) for name, features in groups.items()}
    shown = {name: features.detach().cpu().double()[rows[name]] for name, features in groups.items()}
    centre, directions, _ = _principal(torch.cat(list(shown.values())))
    middle = shown["clean"].mean(0)
    spread = (shown["clean"] - middle).norm(dim=1).mean().clamp_min(1e-12)
    return Panel(
        title,
        {name: (features - centre) @ directions for name, features in shown.items()},
        {name: (features - middle).norm(dim=1) / spread for name, features in shown.items()},
        rows,
    )


def _principal(features: Tensor) -> tuple[Tensor, Tensor, list[float]]:
    """Mean (D,), first two principal directions (D, 2) with a fixed sign, and their shares of the variance."""
    centre = features.mean(0)
    _, values, rows = torch.linalg.svd(features - centre, full_matrices=False)
    directions = torch.zeros(features.shape[1], 2, dtype=features.dtype)
    count = min(2, len(rows))
    directions[:, :count] = rows[:count].T
    largest = directions.abs().argmax(0)
    signs = directions[largest, torch.arange(2)].sign()
    variance = values.square()
    shares = (variance / variance.sum().clamp_min(1e-30))[:2].tolist()
    return centre, directions * torch.where(signs == 0, 1.0, signs), [*shares, 0.0, 0.0][:2]


def _thinned(count: int) -> Tensor:
    """At most `_SHOWN_POINTS` rows of `count`, evenly spread."""
    return torch.linspace(0, count - 1, min(count, _SHOWN_POINTS)).long()


def _terms(epochs: Sequence[Mapping[str, float]]) -> dict[str, tuple[list[int], list[float]]]:
    """Term -> (epochs from 1, values), finite values only."""
    terms: dict[str, tuple[list[int], list[float]]] = {}
    for number, values in enumerate(epochs, start=1):
        for term, value in values.items():
            if term not in _COUNTERS and math.isfinite(value):
                numbers, curve = terms.setdefault(term, ([], []))
                numbers.append(number)
                curve.append(float(value))
    return terms


def _curves(axes: Axes, stage: str, terms: Mapping[str, tuple[list[int], list[float]]]) -> None:
    label_axes(axes, stage, "epoch", "")
    axes.grid(color="#dddddd", linewidth=0.6)
    for position, (term, (numbers, values)) in enumerate(terms.items()):
        axes.plot(
            numbers,
            values,
            color=COLORS[position % len(COLORS)],
            marker=_MARKERS[position % len(_MARKERS)],
            markersize=3.5,
            linewidth=1.4,
            label=plain(term),
        )
    if terms:
        legend = axes.legend(fontsize=8, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def label_axes(axes: Axes, title: str, x: str, y: str) -> None:
    """Title and names of the axes, in the style of all figures."""
    # Names may come from the suspect: "$" must not start a formula.
    axes.set_title(plain(title), fontsize=11, parse_math=False)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def to_png(canvas: Canvas) -> bytes:
    """The figure as PNG; the same figure gives the same bytes."""
    page = io.BytesIO()
    FigureCanvasAgg(canvas)
    canvas.savefig(page, format="png", dpi=_DPI, metadata={"Software": None})  # no versions in the file
    return page.getvalue()
