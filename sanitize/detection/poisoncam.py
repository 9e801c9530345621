"""PoisonCAM: which window of an image decides its cluster, found by hiding windows in turn."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from sanitize.detection.base import Paper
from sanitize.detection.flip_test import Assigner
from sanitize.detection.window_search import Attention
from sanitize.detection.windows import WindowDetector
from sanitize.functional.masks import MaskKind, cluster_activation, masks_for
from sanitize.training import Engine


class PoisonCAM(WindowDetector):
    """PoisonCAM (Qian et al., arXiv 2312.07955): cluster activation masking, flip test, poison classifier.

    An image is hidden window by window. Where hiding makes it leave its cluster (equation 2), something lies that holds
    it there; the sum of these masks (equation 3) is its attention map, and the window in which the map is strongest is
    its candidate trigger. What follows is in `WindowDetector`. No labels, no clean data, no trigger.

    Differs from the paper:
        - Evidence is asked for first; without it nothing is removed. The paper always removes.
        - Masks lie on a regular cyclic grid, a quarter of the window apart or so; ``random`` is the paper's set.
        - Maps are divided by how often masks cover a pixel.
        - After evidence the images that are left get another look, for there may be other triggers; the paper takes
          the best windows once.
        - The flip test is sequential halving, on 180 images at most; below 10,000 images all are scored.
        - Distances and clusters are of normalised features everywhere.
        - The poison classifier sees weak colour changes and no grey: a patch is a matter of colour.
        - Formulas that are missing in the paper follow its prose and PatchSearch's settings; k-means is scikit-learn's.

    Example:
        >>> from sanitize.data import load_images
        >>> from sanitize.suspects import untrained
        >>> encoder = untrained("small-cnn", kind="encoder", image_size=32, normalization="half")
        >>> detector = PoisonCAM(mask_stride=16, flip_images=10, top=5)
        >>> detector.split(detector.score(encoder, load_images("digits#0:100"), Engine(device="cpu"))).evidence
        False
    """

    name: ClassVar[str] = "poisoncam"
    summary: ClassVar[str] = "unlabelled images: windows that hold an image in its cluster, tried on other images"
    paper: ClassVar[Paper] = Paper(
        "Erasing Self-Supervised Learning Backdoor by Cluster Activation Masking",
        "Qian, Xue, Wang, Zhang, Zhang, Xu; arXiv 2312.07955, 2023",
        "https://arxiv.org/abs/2312.07955",
    )

    masks: MaskKind = Field(
        "grid",
        description="windows on a grid or at random places; checkerboards; random blocks",
        json_schema_extra={"paper": "random"},
    )
    mask_stride: int | None = Field(
        None,
        ge=1,
        description="of the grid in px; an eighth of the image when left out (64 masks)",
        json_schema_extra={"paper": "not used"},
    )
    mask_count: int = Field(256, ge=1, description="masks of the other kinds", json_schema_extra={"paper": "not known"})
    mask_fill: str = Field(
        "mean",
        pattern="^(mean|black)$",
        description="hidden pixels: the mean of the normalization (zero behind it), or black",
    )

    def attention(self, assign: Assigner, image_size: int, engine: Engine) -> Attention:
        """See `WindowDetector.attention`."""
        masks = masks_for(
            self.masks,
            image_size,
            self.window_on(image_size),
            count=self.mask_count,
            stride=self.mask_stride or max(1, image_size // 8),
            generator=engine.generator(f"{self.name}/masks"),
        ).to(engine.device)
        mean = assign.network.mean
        fill = mean if self.mask_fill == "mean" else torch.zeros_like(mean)

        def maps(images: Tensor) -> Tensor:
            pairs = torch.arange(len(images) * len(masks), device=images.device)
            assigned = []
            for part in torch.split(pairs, assign.batch_size):
                hidden = masks[part % len(masks), None]
                assigned.append(assign(torch.where(hidden, fill, images[part // len(masks)])))
            labels, distances = (torch.cat(parts).view(len(images), -1) for parts in zip(*assigned, strict=True))
            return cluster_activation(labels, distances, assign(images)[0], masks, len(assign.centres))

        return maps
