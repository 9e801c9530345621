"""Numbers that shall tell backdoored networks from clean ones: their records, and ROC curves over both kinds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from sklearn.metrics import roc_auc_score, roc_curve

from benchmarks.tables import ESTABLISHED


def examined(results: Path, triggers: Sequence[str]) -> list[dict[str, Any]]:
    """One record a network: truth, architecture, seed, trigger (None where clean), and all that was measured on it.

    Args:
        results: Folder with one JSON a cell and seed; rows are called ``truth`` or ``truth, architecture``.
        triggers: Those of the backdoored networks, one a seed.
    """
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for file in sorted(results.glob("*.json")):
        record = json.loads(file.read_text())
        truth, _, architecture = record["row"].partition(", ")
        trigger = of_seed(triggers, record["seed"]) if truth == "backdoored" else None
        key = record["row"], record["seed"]
        one = found.setdefault(
            key, {"truth": truth, "architecture": architecture, "seed": record["seed"], "trigger": trigger}
        )
        one |= record["ours"]
    return list(found.values())


def of_seed(triggers: Sequence[str], seed: int) -> str:
    """The trigger that the backdoored networks of a seed have: all in turn."""
    return triggers[seed % len(triggers)]


def established(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The clean networks, and those whose attack is known to have taken: not where its success was not measured."""
    return [one for one in records if one["truth"] == "clean" or one.get("attack_success_rate", 0.0) > ESTABLISHED]


def write_roc(records: Sequence[dict[str, Any]], scores: Mapping[str, bool], picture: Path) -> None:
    """Curves, and beside them a page with the areas: every score over the networks that it was measured on.

    Args:
        records: See `examined`.
        scores: Name -> whether a *larger* value speaks for a backdoor.
        picture: Of the curves; the page ends in ``-roc.md``.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = [
        "# Detectors: area below the ROC curve",
        "",
        f"Backdoored networks are those whose attack took: success rate above {ESTABLISHED:.0%}. Detection is the "
        "number of backdoored networks beyond every clean one of all architectures. The last column is the mean of the "
        "areas within each architecture.",
        "",
        "| score | backdoored when | clean | backdoored | area | detection without false alarm | area within |",
        "|---|---|---|---|---|---|---|",
    ]
    architectures = sorted({one["architecture"] for one in records})
    figure, axis = pyplot.subplots(figsize=(5, 5))
    for name, larger in scores.items():
        signed = [one | {"value": one[name] if larger else -one[name]} for one in records if name in one]
        truth, values = _split(signed)
        if len(set(truth)) < 2:
            continue
        worst = max(value for value, bad in zip(values, truth, strict=True) if not bad)
        beyond = sum(value > worst for value, bad in zip(values, truth, strict=True) if bad)
        each = [_split([one for one in signed if one["architecture"] == kind]) for kind in architectures]
        within = [roc_auc_score(*both) for both in each if len(set(both[0])) == 2]
        area = roc_auc_score(truth, values)
        lines.append(
            f"| `{name}` | {'larger' if larger else 'smaller'} | {truth.count(False)} | {truth.count(True)} "
            f"| {area:.3f} | {beyond} of {truth.count(True)} | {f'{mean(within):.3f}' if within else '-'} |"
        )
        axis.plot(*roc_curve(truth, values)[:2], label=f"{name} ({area:.2f})")
    axis.set_xlabel("false alarms")
    axis.set_ylabel("detected")
    if axis.lines:
        axis.legend(fontsize=7)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)
    page = picture.with_name(f"{picture.stem}-roc.md")
    page.write_text("\n".join([*lines, "", f"![ROC curves]({picture.name})", ""]))


def _split(signed: Sequence[dict[str, Any]]) -> tuple[list[bool], list[float]]:
    """Whether each is backdoored, and its value."""
    return [one["truth"] == "backdoored" for one in signed], [one["value"] for one in signed]
