"""How well poisoned images were found, where it is known which they are; and the verdict on a data set."""

from __future__ import annotations

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from sanitize.detection.base import Scores, Split
from sanitize.detection.window_search import WindowScores
from sanitize.evaluation.evaluator import Measurement
from sanitize.types import Verdict

RANKS = (20, 50, 100)
"""Numbers of highest-ranked images whose share of poisoned ones is measured."""
TRUTH_METRICS = ("auroc", "recall", "precision", "false_alarm_rate", "poison_share", "remaining_poison_share")


def measure_filtering(scores: Scores, removed: Tensor, poisoned: Tensor | None) -> Measurement:
    """Measures of a removal; all that needs the truth is None without it.

    Args:
        scores: Of the images; higher is more suspicious.
        removed: (N,) bool.
        poisoned: (N,) bool, the truth; None where it is not known. Evaluation only.

    Returns:
        ``removed_share`` of all images; ``auroc`` of the scores; ``recall``, removed share of the poisoned images;
        ``precision``, poisoned share of the removed ones; ``false_alarm_rate``, removed share of the others;
        ``poison_share`` of the data as it was, and ``remaining_poison_share`` of what is left.

    Example:
        >>> import torch
        >>> scores = Scores(torch.tensor([0.1, 0.2, 0.9, 0.8]))
        >>> measure_filtering(scores, scores.values > 0.85, scores.values > 0.5).metrics["recall"]
        0.5
    """
    measured = Measurement({"removed_share": float(removed.double().mean())}, {})
    if poisoned is None:
        reason = "which images are poisoned is not known; --truth tells it, in a drill"
        measured.metrics |= dict.fromkeys(TRUTH_METRICS)
        measured.unmeasured |= dict.fromkeys(TRUTH_METRICS, reason)
        return measured
    caught = int((removed & poisoned).sum())
    bad, good = int(poisoned.sum()), int((~poisoned).sum())
    metrics, unmeasured = measured.metrics, measured.unmeasured
    metrics["poison_share"] = bad / len(poisoned)
    if bad and good:
        metrics["auroc"] = float(roc_auc_score(poisoned.numpy(), scores.values.numpy()))
    else:
        metrics["auroc"], unmeasured["auroc"] = None, "it takes poisoned and clean images"
    for name, part, whole, lacking in (
        ("recall", caught, bad, "no image is poisoned"),
        ("precision", caught, int(removed.sum()), "no image was removed"),
        ("remaining_poison_share", bad - caught, int((~removed).sum()), "no image is left"),
        ("false_alarm_rate", int((removed & ~poisoned).sum()), good, "every image is poisoned"),
    ):
        metrics[name] = part / whole if whole else None
        if not whole:
            unmeasured[name] = lacking
    return measured


def measure_windows(scores: WindowScores, poisoned: Tensor | None, boxes: Tensor | None) -> Measurement:
    """How well windows and ranks point at the triggers.

    Args:
        scores: Of windows.
        poisoned: (N,) bool, the truth; None where it is not known. Evaluation only.
        boxes: (N, 4) int64, top, left, height and width of the triggers in the images that the network sees, height 0
            where there is none; None where they are not known. Evaluation only.

    Returns:
        ``top20_accuracy``, ``top50_accuracy``, ``top100_accuracy``: poisoned share of the images that rank highest;
        over the poisoned images that were scored: ``catch_rate``, share of the trigger inside the window, and ``iou``,
        their common area over that of both together.
    """
    metrics: dict[str, float | None] = {}
    unmeasured: dict[str, str] = {}
    order = scores.order[scores.flips[scores.order] > 0]
    for count in RANKS:
        name = f"top{count}_accuracy"
        known = poisoned is not None and len(order) >= count
        metrics[name] = float(poisoned[order[:count]].double().mean()) if known and poisoned is not None else None
        if not known:
            unmeasured[name] = f"it takes the truth (--truth) and {count} scored images"
    metrics |= dict.fromkeys(("catch_rate", "iou"))
    marked = None if boxes is None else torch.nonzero((boxes[:, 2] > 0) & (scores.flips > 0)).flatten()
    if boxes is None or marked is None or not len(marked):
        reason = "where the triggers are is not known; a truth.npz with an array `boxes` tells it, in a drill"
        return Measurement(metrics, unmeasured | dict.fromkeys(("catch_rate", "iou"), reason))
    low, size = boxes[marked, :2], boxes[marked, 2:]
    corner = scores.corners[marked]
    common = torch.minimum(corner + scores.window, low + size) - torch.maximum(corner, low)
    shared = common.clamp(min=0).prod(dim=1).double()
    area = size.prod(dim=1)
    metrics["catch_rate"] = float((shared / area).mean())
    metrics["iou"] = float((shared / (area + scores.window**2 - shared)).mean())
    return Measurement(metrics, unmeasured)


def judge_data(split: Split, poisoned: Tensor | None, *, suspect: bool = True) -> tuple[Verdict, list[str]]:
    """Verdict on a data set.

    `fail` where poison was found, or where the truth knows of some that was not found. That nothing was
    found is a `pass` only by the truth, or by a test that was calibrated on the data with the network in question: a
    network that was trained for the occasion may not have learned what another one learns from the same data.

    Args:
        split: The detector's decision.
        poisoned: (N,) bool, the truth; None where it is not known.
        suspect: Whether the network was given, and not trained for the occasion.

    Returns:
        Verdict and at least one reason.

    Example:
        >>> import torch
        >>> nothing = torch.zeros(4, dtype=torch.bool)
        >>> judge_data(Split(~nothing, nothing, False, "one group"), None)[0]
        <Verdict.INCONCLUSIVE: 'inconclusive'>
    """
    count, total = int(split.poisoned.sum()), len(split.poisoned)
    if count:
        reasons = [f"{count} of {total} images were taken for poisoned and removed", split.reason]
        if poisoned is not None:
            left = int((poisoned & ~split.poisoned).sum())
            reasons.append(f"by the truth that was given, {left} of {int(poisoned.sum())} poisoned images are left")
        return Verdict.FAIL, reasons
    reasons = ["nothing was removed", split.reason, *([split.doubt] if split.doubt else [])]
    if split.evidence:
        return Verdict.FAIL, reasons
    if poisoned is None and split.calibrated is not None and split.doubt is None and suspect:
        reasons.append(
            "triggers that this network has not learned are not seen; a drill on data like these would show the power"
        )
        return Verdict.PASS, reasons
    if poisoned is None:
        reasons.append(
            "that nothing was found settles it only where the detector is known to find what could be there; "
            "a drill on data like these (`sanitize attack`, then --truth) would show that"
        )
        return Verdict.INCONCLUSIVE, reasons
    missed = int(poisoned.sum())
    reasons.append(f"by the truth that was given, {missed} of {total} images are poisoned")
    return (Verdict.FAIL if missed else Verdict.PASS), reasons


__all__ = ["RANKS", "TRUTH_METRICS", "judge_data", "measure_filtering", "measure_windows"]
