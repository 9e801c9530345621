"""The losses of BMAIU (Zhang et al., Electronics 14(8):1587, 2025), as functions of features.

Every similarity that is to grow carries a minus sign, the one that is to shrink a plus sign; means over the batch.
"""

from __future__ import annotations

from torch import Tensor

from sanitize.functional.similarity import mean_similarity


def implant_losses(
    anchor: Tensor, clean: Tensor, triggered: Tensor, reference: Tensor, *, effectiveness_weight: float
) -> dict[str, Tensor]:
    """Stage 1: ``L_attack = L_cons + u1 L_eff`` (eq. 1 to 3).

    Args:
        anchor: f0(c), features (N, D) of clean images in the suspect.
        clean: f1(c), the same images in the network that is trained.
        triggered: f1(c + e), the same images with the canary.
        reference: f1(r), images of the reference set.
        effectiveness_weight: u1.

    Returns:
        ``consistency`` and ``effectiveness``, each in [-1, 1], and their weighted sum ``loss``.
    """
    consistency = -mean_similarity(anchor, clean)
    effectiveness = -mean_similarity(triggered, reference)
    return {
        "loss": consistency + effectiveness_weight * effectiveness,
        "consistency": consistency,
        "effectiveness": effectiveness,
    }


def unlearn_losses(
    anchor: Tensor,
    clean: Tensor,
    triggered: Tensor,
    reference: Tensor,
    *,
    unlearn_weight: float,
    separation_weight: float,
    consistency_weight: float = 1.0,
) -> dict[str, Tensor]:
    """Stage 2: ``L_unlearn = L0 + u2 L1 + u3 L2`` (eq. 4 to 6); Table 8 leaves out one of the three.

    Args:
        anchor: f1(c), features (N, D) of clean images in the network that carries the canary, frozen.
        clean: f2(c), the same images in the network that is trained.
        triggered: f2(c + e), the same images with the canary.
        reference: f2(r), images of the reference set.
        unlearn_weight: u2, weight of "a triggered image looks like its own clean image".
        separation_weight: u3, weight of "and not like the reference set".
        consistency_weight: Weight of "clean images look as before", 1 in the paper.

    Returns:
        ``consistency`` (L0), ``restoration`` (L1), ``separation`` (L2), each in [-1, 1], and the weighted sum ``loss``.
    """
    consistency = -mean_similarity(anchor, clean)
    restoration = -mean_similarity(anchor, triggered)
    separation = mean_similarity(triggered, reference)
    return {
        "loss": consistency_weight * consistency + unlearn_weight * restoration + separation_weight * separation,
        "consistency": consistency,
        "restoration": restoration,
        "separation": separation,
    }
