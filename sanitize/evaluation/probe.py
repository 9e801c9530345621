"""Classifiers on frozen features: the linear probe and the weighted nearest-neighbour vote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from lightly.utils.benchmarking import knn_predict
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from sanitize.errors import DataError


@dataclass(frozen=True)
class LinearProbe:
    """Multinomial logistic regression on standardised features, fitted to convergence; deterministic.

    Differs from the papers: they train one FC layer by SGD for 10 epochs at a learning rate of 0.1, whose result
    depends on the scale of the features.
    """

    model: Any

    @classmethod
    def fit(cls, features: Tensor, labels: Tensor) -> LinearProbe:
        """Fit on features (N, D) and labels (N,).

        Raises:
            DataError: Fewer than two classes.
        """
        if torch.equal(labels, labels[:1].expand_as(labels)):
            raise DataError("the linear probe needs labelled images of at least two classes; check --probe-data.")
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=1000))
        return cls(model.fit(features.numpy(), labels.numpy()))

    def predict(self, features: Tensor) -> Tensor:
        """Classes (N,) of features (N, D)."""
        return torch.from_numpy(self.model.predict(features.numpy())).long()


def knn_accuracy(features: Tensor, labels: Tensor, bank: Tensor, bank_labels: Tensor, *, temperature: float) -> float:
    """Accuracy of the weighted k-nearest-neighbour vote on L2-normalised features (Wu et al., CVPR 2018).

    Args:
        features: Test features (N, D).
        labels: Their classes (N,).
        bank: Labelled features (M, D) that vote; k is 200, or the size of the smallest class where that is less.
        bank_labels: Classes (M,).
        temperature: Weight of a neighbour is exp(similarity / temperature).
    """
    counts = torch.bincount(bank_labels)
    predicted = knn_predict(
        torch.nn.functional.normalize(features),
        torch.nn.functional.normalize(bank).T,
        bank_labels,
        num_classes=len(counts),
        knn_k=min(200, int(counts[counts > 0].min())),
        knn_t=temperature,
    )[:, 0]
    return float((predicted == labels).float().mean())
