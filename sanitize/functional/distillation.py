"""Distillation of an encoder by its similarities (CompRess: Koohpayegani et al., NeurIPS 2020)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import kl_div, normalize


def similarity_divergence(teacher: Tensor, student: Tensor, anchors: Tensor, *, temperature: float) -> Tensor:
    """How differently two encoders place images among anchors: ``KL(p || q)``, a mean over the images.

    p and q are the softmax of the cosine similarities to the anchors, divided by the temperature, of the teacher's and
    of the student's features (eq. 1 and 2, both against the teacher's anchors).

    Args:
        teacher: Features (N, D).
        student: Features (N, D).
        anchors: Normalised features of the teacher (M, D).
        temperature: Above 0.

    Returns:
        Scalar, at least 0.

    Example:
        >>> import torch
        >>> features = torch.eye(3)
        >>> similarity_divergence(features, features, features, temperature=0.1).item()
        0.0
    """
    wanted = (normalize(teacher) @ anchors.T / temperature).log_softmax(dim=1)
    found = (normalize(student) @ anchors.T / temperature).log_softmax(dim=1)
    return kl_div(found, wanted, reduction="batchmean", log_target=True)
