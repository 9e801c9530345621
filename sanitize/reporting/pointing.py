"""The projection of features for the page: point at what lies far out, and see its image. SVG and style, no script."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape

import torch
from PIL import Image
from torch import Tensor

from sanitize.reporting.wording import plain

Pictures = Mapping[str, Callable[[int], Tensor]]
"""Group -> image (3, H, W) in [0, 1] of a row of its features."""

COLORS = {"clean": "#0072B2", "triggered": "#D55E00"}
_FARTHEST = 8  # of each group and panel
_WIDTH, _PLOT, _THUMB = 420, 300, 84
_LARGEST_THUMB = 64  # pixels of the embedded image


@dataclass(frozen=True)
class Panel:
    """One encoder's features in two dimensions.

    Args:
        title: Before or after.
        points: Group -> (N, 2) coordinates.
        distances: Group -> (N,) distance from the mean clean feature, in clean spreads.
        rows: Group -> (N,) rows of the features that are shown.
    """

    title: str
    points: Mapping[str, Tensor]
    distances: Mapping[str, Tensor]
    rows: Mapping[str, Tensor]


def pointable(panels: list[Panel], pictures: Pictures) -> str:
    """Panels side by side as HTML; names are escaped, images embedded.

    Args:
        panels: With the groups ``clean`` and ``triggered``, or ``clean`` alone.
        pictures: Image of a row; the same groups.
    """
    shown = "".join(_svg(panel, pictures) for panel in panels)
    keys = "".join(
        f'<span><span class="key" style="background: {COLORS[group]}"></span> {escape(plain(group))}</span> '
        for group in panels[0].points
    )
    hint = "Point at a ring, or go from ring to ring with the tab key, to see its image."
    return f'<div class="panels">{shown}</div><p class="keys">{keys}<span class="hint">{hint}</span></p>'


def _svg(panel: Panel, pictures: Pictures) -> str:
    together = torch.cat(list(panel.points.values()))
    low, high = together.min(0).values, together.max(0).values
    margin, size = 14.0, torch.tensor([_WIDTH, _PLOT])
    scale = (size - 2 * margin) / (high - low).clamp_min(1e-12)

    def place(points: Tensor) -> Tensor:
        flipped = (points - low) * scale + margin
        return torch.stack([flipped[:, 0], _PLOT - flipped[:, 1]], dim=1)

    dots, rings = [], []
    for group, points in panel.points.items():
        placed = place(points).tolist()
        steps = "".join(f"M{x:.0f} {y:.0f}h0" for x, y in placed)
        cap = "round" if group == "clean" else "square"
        dots.append(f'<path d="{steps}" stroke="{COLORS[group]}" stroke-linecap="{cap}" class="dots"/>')
        farthest = panel.distances[group].argsort(descending=True)[:_FARTHEST].tolist()
        for index in farthest:
            row, distance = int(panel.rows[group][index]), float(panel.distances[group][index])
            label = f"{plain(group)} image {row}: {distance:.1f} clean spreads away"
            x, y = placed[index]
            rings.append(_ring(x, y, label, pictures[group](row)))
    name = escape(f"{panel.title}: features in two dimensions, and the images that lie farthest out")
    height = _PLOT + _THUMB + 12
    return (
        f'<div class="panel"><p class="name">{escape(panel.title)}</p>'
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="group" aria-label="{name}">'
        f'<rect x=".5" y=".5" width="{_WIDTH - 1}" height="{_PLOT - 1}" class="frame"/>'
        f"{''.join(dots)}{''.join(rings)}</svg></div>"
    )


def _ring(x: float, y: float, label: str, image: Tensor) -> str:
    text = escape(label)
    return (
        f'<g class="point" tabindex="0" role="img" aria-label="{text}"><circle cx="{x:.0f}" cy="{y:.0f}" r="6"/>'
        f'<g class="thumb"><image x="0" y="{_PLOT + 8}" width="{_THUMB}" height="{_THUMB}" href="{_data_uri(image)}"/>'
        f'<text x="{_THUMB + 10}" y="{_PLOT + 8 + _THUMB / 2}">{text}</text></g></g>'
    )


def _data_uri(image: Tensor) -> str:
    pixels = (image.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    picture = Image.fromarray(pixels)
    picture.thumbnail((_LARGEST_THUMB, _LARGEST_THUMB))
    page = io.BytesIO()
    picture.save(page, "PNG")
    return f"data:image/png;base64,{base64.b64encode(page.getvalue()).decode('ascii')}"
