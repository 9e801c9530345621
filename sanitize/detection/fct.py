"""FCT: images whose features move most when they are rotated and shifted are the poisoned ones."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sanitize.data import DeviceImages, ImageSet
from sanitize.detection.base import DataDetector, Paper, Scores, Split
from sanitize.errors import ArchitectureError, ConfigError, DataError
from sanitize.functional.consistency import Drawn, Transformation, draw, feature_consistency, transformed
from sanitize.functional.two_groups import MINIMUM_GROUP, TwoGroups, stands_out, two_groups
from sanitize.suspects.heads import find_head, remove_head
from sanitize.suspects.networks import Network
from sanitize.training import Engine
from sanitize.types import ModelKind

COLLAPSED = 0.1  # share of images whose features do not move at all, above which the features say nothing


class FCT(DataDetector):
    """Feature consistency towards transformations, and the split of a data set by it.

    The score of an image is the mean squared distance between the features of the image and of its transformed self
    (equation of the metric in the paper's section on sample distinguishment). A trigger's part of the features is lost
    when the image is rotated and shifted, so that triggered images score higher. The network is the suspect itself,
    or one that was trained on the data for a moment and without augmentation.

    The decision ``auto`` fits, for each observed label, one and two normal distributions to the logarithm of the
    scores. Two count where they explain the scores better (BIC) and lie apart (Ashman's D), or where they overlap and
    explain this class so much better than the other classes that chance is excluded (Student's t); then the upper one
    is the poison. Of more classes than ten more is asked; in the comparison fits also begin in the lower tail, as where
    most of a class is poison. Otherwise the answer is "no evidence". ``quota`` takes the highest and lowest shares of
    all images, as the paper does, and so always finds poison.

    Differs from the paper:
        - The decision comes from the distribution of the scores by default, not from fixed shares.
        - Scores are means of 5 draws of the transformation, drawn once; the release draws once for the thresholds and
          again for the split.
        - Ranks, not values, are cut under ``quota``, so that ties do not change the sizes.

    Example:
        >>> scores = Scores(torch.randn(100, generator=torch.Generator().manual_seed(0)).exp())
        >>> FCT(decision="quota").split(scores).counts
        {'clean': 20, 'uncertain': 75, 'poisoned': 5}
        >>> FCT().split(scores).evidence
        False
    """

    name: ClassVar[str] = "fct"
    summary: ClassVar[str] = "images whose features move most under rotation and shift; needs a network trained on them"
    paper: ClassVar[Paper] = Paper(
        "Effective Backdoor Defense by Exploiting Sensitivity of Poisoned Samples",
        "Chen, Wu, Wang; NeurIPS 2022",
        "https://openreview.net/forum?id=AsH-Tx2U0Ug",
    )
    kind: ClassVar[ModelKind] = "classifier"
    minimum_images: ClassVar[int] = MINIMUM_GROUP

    transformations: tuple[Transformation, ...] = Field(
        ("rotate", "shift"), min_length=1, description="of rotate, shift, flip, crop, blur, erase; in this order"
    )
    draws: int = Field(
        5, ge=1, description="transformed copies of an image that are averaged", json_schema_extra={"paper": 1}
    )
    decision: Literal["auto", "quota"] = Field(
        "auto", description="from the distribution of the scores, or fixed shares", json_schema_extra={"paper": "quota"}
    )
    clean_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="auto: share of each class, at most, that is called clean (0.5 when left out); quota: of all (0.2)",
        json_schema_extra={"paper": 0.2},
    )
    poisoned_share: float = Field(0.05, gt=0, lt=1, description="quota: share of all images that is called poisoned")
    per_class: bool = Field(
        False,
        description="quota: the clean share is taken of each observed label, so that no class is missing",
        json_schema_extra={"paper": "not there"},
    )
    separation: float = Field(
        2.0,
        ge=0,
        description="auto: Ashman's D of the two distributions, at least, in a class that is judged by itself",
        json_schema_extra={"paper": "not used"},
    )
    significance: float = Field(
        0.01,
        ge=0,
        lt=1,
        description="auto: level of the test whether one class falls apart as no other does; 0 for no such test",
        json_schema_extra={"paper": "not used"},
    )

    def score(self, network: Network, data: ImageSet, engine: Engine) -> Scores:
        """One pass over the data: an image and its transformed copies go through the network together.

        With several processes each takes some batches; the scores are those of one process, bit for bit.

        Raises:
            ArchitectureError: The network has no linear head whose input would be the features.
        """
        images, generator = DeviceImages(data, engine.device), engine.generator("fct")

        def shown(rows: Tensor) -> tuple[Tensor, list[Drawn]]:
            pixels = images.pixels(rows)
            return pixels, [draw(self.transformations, pixels.shape, generator) for _ in range(self.draws)]

        consistency = _Consistency(feature_extractor(network), self.transformations)
        return Scores(engine.forward(consistency, shown, len(images))[:, 0], data.labels)

    def split(self, scores: Scores) -> Split:
        """Clean, uncertain, poisoned.

        Raises:
            ConfigError: The shares of ``quota`` overlap.
            DataError: A score is not finite, or features do not move at all for too many images.
        """
        values = scores.values.double()
        if not bool(torch.isfinite(values).all()):
            raise DataError("fct: features are not finite for some images. Check --normalization and --data.")
        if self.decision == "quota":
            return self._quota(values, scores.labels if self.per_class else None)
        still = float((values == 0).double().mean())
        if still > COLLAPSED:
            raise DataError(
                f"fct: the features of {still:.0%} of the images do not move at all when the image is transformed. "
                "They have collapsed, and say nothing. Use a network that was trained normally on this data."
            )
        return self._auto(values, scores.labels)

    def _quota(self, values: Tensor, labels: Tensor | None) -> Split:
        clean_share = self.clean_share or 0.2
        if clean_share + self.poisoned_share > 1:
            raise ConfigError(
                f"fct: clean_share={clean_share} and poisoned_share={self.poisoned_share} are more than all images."
            )
        order = values.argsort(stable=True)
        clean, poisoned = torch.zeros(2, len(values), dtype=torch.bool)
        poisoned[order[len(values) - int(self.poisoned_share * len(values)) :]] = True
        for _, rows in _groups(values, labels):
            lowest = rows[values[rows].argsort(stable=True)]
            clean[lowest[: int(clean_share * len(rows))]] = True
        clean &= ~poisoned  # a class may be poisoned almost wholly
        return Split(clean, poisoned, True, f"the highest {self.poisoned_share:.0%} of the scores, as asked (quota)")

    def _auto(self, values: Tensor, labels: Tensor | None) -> Split:
        clean, poisoned = torch.zeros(2, len(values), dtype=torch.bool)
        groups = dict(_groups(values, labels))
        mixtures, tails = _mixtures(values, groups), _mixtures(values, groups, also_in_the_tail=True)
        found: dict[int, TwoGroups] = {}
        for label, rows in groups.items():
            order = rows[values[rows].argsort(stable=True)]
            lowest = order[: max(1, int((self.clean_share or 0.5) * len(order)))]
            mixture = self._judged(label, mixtures, tails)
            if mixture is None:
                clean[lowest] = True
                continue
            found[label] = mixture
            poisoned[rows[values[rows] >= mixture.poisoned_from]] = True
            clean[lowest[values[lowest] <= mixture.clean_to]] = True
        if not found:
            reason = f"no class of {MINIMUM_GROUP} images or more has scores that fall into two groups"
            return Split(clean, poisoned, False, f"{reason}: no evidence of poison")
        strongest = max(found.values(), key=lambda mixture: mixture.gain)
        named = ", ".join(str(label) for label in found if label >= 0) or "all"
        reason = (
            f"the scores of class {named} fall into two groups (Ashman's D {strongest.separation:.1f}, BIC better by "
            f"{strongest.gain:.0f}); {int(poisoned.sum())} of {len(values)} images are in an upper one"
        )
        return Split(clean, poisoned, True, reason, tuple(label for label in found if label >= 0))

    def _judged(self, label: int, mixtures: dict[int, TwoGroups], tails: dict[int, TwoGroups]) -> TwoGroups | None:
        """The two groups of a class, by itself or beside the others; None where there is no evidence of two."""
        if label in mixtures and mixtures[label].apart(self.separation, len(mixtures)):
            return mixtures[label]
        # A start in the tail also splits classes that are skewed: chance is excluded by the other classes alone.
        return tails[label] if label in tails and stands_out(label, tails, self.significance) else None


def feature_extractor(network: Network) -> Network:
    """A copy that gives the input of the layer that makes the logits, (N, D), instead of logits.

    Raises:
        ArchitectureError: There is no such layer.
    """
    features = copy.deepcopy(network)
    remove_head(features.backbone, logit_layer(network))
    return features


def logit_layer(network: Network) -> str:
    """Dotted name, in the backbone, of the layer that makes the logits.

    Raises:
        ArchitectureError: There is no such layer.
    """
    head = find_head(network.backbone)
    if head is not None:
        return head
    linear: list[str] = [
        name for name, layer in network.backbone.named_modules() if name and isinstance(layer, nn.Linear)
    ]
    if not linear:
        raise ArchitectureError(
            f"{network.spec.architecture} has no linear layer that gives the logits, so that its features are not "
            "known. Give your own --arch file.py:function whose last layer is called fc, head or classifier."
        )
    return linear[-1]


class _Consistency(nn.Module):
    """Scores (N, 1) of images (N, 3, H, W), with the random numbers of each transformed copy."""

    def __init__(self, features: nn.Module, names: tuple[Transformation, ...]) -> None:
        super().__init__()
        self.features = features
        self.names = names

    def forward(self, shown: tuple[Tensor, list[Drawn]]) -> Tensor:
        images, draws = shown
        where = self.features(images).flatten(1).float()
        moved = [
            feature_consistency(where, self.features(transformed(images, self.names, drawn)).flatten(1).float())
            for drawn in draws
        ]
        return torch.stack(moved, dim=1).mean(dim=1, keepdim=True)


def _mixtures(values: Tensor, groups: dict[int, Tensor], *, also_in_the_tail: bool = False) -> dict[int, TwoGroups]:
    """Of the classes that are large enough to be judged."""
    fitted = {label: two_groups(values[rows], also_in_the_tail=also_in_the_tail) for label, rows in groups.items()}
    return {label: mixture for label, mixture in fitted.items() if mixture is not None}


def _groups(values: Tensor, labels: Tensor | None) -> Iterator[tuple[int, Tensor]]:
    """Label and rows of each class; without labels, label -1 and all rows."""
    if labels is None:
        yield -1, torch.arange(len(values))
        return
    for label in torch.nonzero(torch.bincount(labels)).flatten().tolist():
        yield label, torch.nonzero(labels == label).flatten()
