"""A linear head on frozen features, as a layer."""

from __future__ import annotations

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn


def fit_linear_head(features: Tensor, labels: Tensor) -> nn.Linear:
    """Multinomial logistic regression on standardised features, fitted to convergence; the scaling is folded in.

    Args:
        features: (N, D) on the CPU.
        labels: (N,) class indices 0 .. C-1, each of which occurs, at least two.

    Returns:
        Layer from features (N, D) to logits (N, C).

    Example:
        >>> head = fit_linear_head(torch.tensor([[0.0], [1.0], [10.0], [11.0]]), torch.tensor([0, 0, 1, 1]))
        >>> head(torch.tensor([[0.5], [10.5]])).argmax(dim=1)
        tensor([0, 1])
    """
    scaler = StandardScaler()
    model = LogisticRegression(C=1.0, max_iter=1000).fit(scaler.fit_transform(features.double().numpy()), labels)
    weight, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
    if len(weight) == 1:  # two classes: scikit-learn gives the logit of the second against the first
        weight, bias = torch.cat([torch.zeros_like(weight), weight]), torch.cat([torch.zeros_like(bias), bias])
    weight = weight / torch.from_numpy(scaler.scale_)
    with torch.random.fork_rng(devices=[]):  # the weights that a new layer draws are replaced at once
        head = nn.Linear(weight.shape[1], len(weight))
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias - weight @ torch.from_numpy(scaler.mean_))
    return head
