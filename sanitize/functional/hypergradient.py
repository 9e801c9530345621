"""Implicit hypergradients by fixed-point iteration (Grazzi et al., ICML 2020), for one inner variable."""

from __future__ import annotations

import torch
from torch import Tensor


def implicit_term(update: Tensor, variable: Tensor, outer_gradient: Tensor, *, steps: int) -> Tensor:
    """A scalar whose gradient in the weights is the part of the hypergradient that runs through the inner optimum.

    At a fixed point ``delta = Phi(delta, theta)`` the implicit function theorem gives

        d delta / d theta = (1 - dPhi / d delta)^-1 dPhi / d theta,

    so that the part is ``(dPhi / d theta)^T v`` with ``v = (dPhi / d delta)^T v + dL_out / d delta``. This equation is
    iterated `steps` times from zero, which converges where Phi is a contraction.

    Args:
        update: Phi(delta, theta), any shape, computed with a graph in both.
        variable: delta, of the same shape, requires grad.
        outer_gradient: dL_out / d delta, of the same shape.
        steps: K of the iteration; 1 takes v = dL_out / d delta.

    Returns:
        Scalar ``<Phi, v>`` with v detached. Only its gradient has a meaning.

    Example:
        >>> theta, delta = torch.tensor(3.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)
        >>> term = implicit_term(0.5 * delta + theta, delta, torch.tensor(1.0), steps=50)  # delta* = 2 theta
        >>> torch.autograd.grad(term, theta)[0]
        tensor(2.)
    """
    vector = torch.zeros_like(outer_gradient)
    for _ in range(steps):
        vector = torch.autograd.grad(update, variable, grad_outputs=vector, retain_graph=True)[0] + outer_gradient
    return (update * vector.detach()).sum()
