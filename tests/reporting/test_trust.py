"""Figures of a filter: what they say in words, and that the truth and odd data are shown."""

from __future__ import annotations

import torch

from sanitize.data import ImageSet
from sanitize.reporting.trust import class_balance, least_trusted, loss_distribution
from sanitize.trainers.base import Filtering

LOSSES = torch.linspace(0, 4, 41)
FILTERING = Filtering(LOSSES, LOSSES <= 1.0)
LABELS = torch.tensor([0] * 11 + [1] * 20 + [3] * 10)


def data(names: tuple[str, ...] | None = None) -> ImageSet:
    images = torch.zeros(41, 3, 8, 8, dtype=torch.uint8)
    return ImageSet(images=images, labels=LABELS, class_names=names, uri="mine")


def test_the_distribution_has_its_cut_and_the_truth_where_it_is_known():
    unknown = loss_distribution("classifier", FILTERING, None)
    assert unknown.name == "losses-of-images-classifier"
    assert "11 of 41 images are trusted, with losses up to 1;" in unknown.alt
    assert "trusted 0.5, not trusted 2.5" in unknown.alt
    known = loss_distribution("classifier", FILTERING, LOSSES > 3.5)
    assert "poisoned 3.8" in known.alt
    assert known.png != unknown.png
    assert loss_distribution("classifier", FILTERING, LOSSES > 9).png != unknown.png  # nothing is poisoned


def test_the_balance_names_the_least_trusted_label_that_is_there():
    assert "The label that is trusted least is 1: 0 of 20 images" in class_balance("mixmatch", FILTERING, data()).alt
    named = class_balance("mixmatch", FILTERING, data(("aeroplane", "$x$", "unused", "dog")))
    assert "is $x$" in named.alt and named.png.startswith(b"\x89PNG")


def test_the_gallery_begins_with_the_highest_loss_of_those_that_are_not_trusted():
    found = least_trusted("mixmatch", FILTERING, data())
    assert "rows 40, 39, 38" in found.alt and found.alt.startswith("A gallery of 24 images")
    few = least_trusted("mixmatch", Filtering(LOSSES, LOSSES < 3.85), data())
    assert "A gallery of 2 images, rows 40, 39." in few.alt
