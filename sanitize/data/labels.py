"""Labels that a network is to be trained with: checked before any work."""

from __future__ import annotations

from torch import Tensor

from sanitize.data.images import ImageSet
from sanitize.errors import DataError


def training_labels(data: ImageSet, purpose: str, *, classes: int | None) -> Tensor:
    """The labels (N,) of a set, where a network can be trained with them.

    Args:
        data: The set.
        purpose: What needs them, for messages.
        classes: Of the classifier; None where a new head is made for the labels.

    Raises:
        DataError: There are no labels, they name classes that the classifier does not have, or they are all the same.

    Example:
        >>> from sanitize.data import load_images
        >>> training_labels(load_images("digits#:5"), "fine-tune", classes=10).tolist()
        [0, 1, 2, 3, 4]
    """
    labels = data.require_labels(purpose)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes is not None and high >= classes):
        limit = "" if classes is None else f" to {classes - 1}"
        raise DataError(
            f"{purpose}: the labels of {data.uri or 'the data'} are {low} to {high}, and the classes of the network "
            f"are 0{limit}. Give data of the network's own task."
        )
    if low == high:
        raise DataError(
            f"{purpose}: all images of {data.uri or 'the data'} have the label {low}; at least two classes are needed."
        )
    return labels
