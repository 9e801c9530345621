"""Verdict x truth: what `sanitize scan` says of encoders whose truth is known, other clean encoders its references."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from sanitize.detection.collapse import FeatureCollapse
from sanitize.detection.decree import DECREE
from sanitize.detection.model import ModelDetector
from sanitize.evaluation import Policy, judge_scan
from sanitize.functional.null import exceedance
from sanitize.types import Verdict

MEASURED: dict[type[ModelDetector], dict[str, str]] = {
    FeatureCollapse: {"collapse_perturbation": "collapse_perturbation", "collapse_patch": "collapse_patch"},
    DECREE: {"pl1_norm": "decree_pl1"},
}
"""Alarming measure of a detector -> its name in the records."""

ESTABLISHED = 0.9
KINDS = {"patch": ("patch", "corner"), "whole image": ("blend", "sine", "warp")}
POLICY = Policy()


def write_verdicts(records: Sequence[dict[str, Any]], page: Path) -> None:
    """The table, with the exact interval of each rate.

    Args:
        records: One an encoder, see `benchmarks.roc.examined`; a detector judges those that its measures are known of.
        page: Markdown.
    """
    lines = [
        "# `sanitize scan`: verdict x truth",
        "",
        f"Each encoder is judged as `sanitize scan` judges it, with the default policy (at most "
        f"{POLICY.false_alarm_rate:.0%} false alarms). References are the clean encoders of the same architecture, of "
        "other seeds than the encoder's own: the next five seeds, or all of them. A backdoored encoder counts where "
        f"its attack success rate is above {ESTABLISHED:.0%}. The interval is that of the share of verdict `fail` "
        "(Clopper and Pearson, 95 %).",
        "",
        "| detector | references | encoders | pass | fail | inconclusive | share of `fail` |",
        "|---|---|---|---|---|---|---|",
    ]
    for detector, names in MEASURED.items():
        known = [one for one in records if one.keys() >= set(names.values())]
        for count in (POLICY.minimum_references, None):
            for heading, chosen in _groups(known).items():
                verdicts = Counter(_verdict(one, known, detector, count) for one in chosen)
                lines.append(
                    f"| `{detector.name}` | {count or 'all'} | {heading} | {verdicts[Verdict.PASS]} "
                    f"| {verdicts[Verdict.FAIL]} | {verdicts[Verdict.INCONCLUSIVE]} "
                    f"| {_interval(verdicts[Verdict.FAIL], len(chosen))} |"
                )
    page.write_text("\n".join([*lines, ""]))


def _groups(records: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    established = [one for one in records if one["trigger"] and one.get("attack_success_rate", 0.0) > ESTABLISHED]
    groups = {"clean": [one for one in records if not one["trigger"]]}
    for kind, names in KINDS.items():
        groups[f"backdoored, {kind} trigger"] = [one for one in established if one["trigger"] in names]
    return groups


def _verdict(
    one: dict[str, Any], records: Sequence[dict[str, Any]], detector: type[ModelDetector], count: int | None
) -> Verdict:
    clean = {
        other["seed"]: other
        for other in records
        if not other["trigger"] and other["architecture"] == one["architecture"] and other["seed"] != one["seed"]
    }
    following = sorted(clean, key=lambda seed: (seed < one["seed"], seed))
    references = [clean[seed] for seed in following][:count]
    chances = {
        measure: exceedance(one[name], [other[name] for other in references], detector.alarming[measure])
        for measure, name in MEASURED[detector].items()
        if len(references) >= 2
    }
    return judge_scan(chances, len(references), [], POLICY)[0]


def _interval(count: int, total: int) -> str:
    if not total:
        return "-"
    interval = binomtest(count, total).proportion_ci(method="exact")
    return f"{count / total:.2f} ({interval.low:.2f} to {interval.high:.2f})"
