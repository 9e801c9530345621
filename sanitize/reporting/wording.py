"""What all views say in the same words: titles, numbers, verdicts. Nothing in here knows a format."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from sanitize.types import Report, Verdict

HEADLINES = {
    Verdict.PASS: "No evidence of a backdoor was found by what was measured.",
    Verdict.FAIL: "What was measured does not meet the conditions for a pass.",
    Verdict.INCONCLUSIVE: "What was measured does not settle it, either way.",
}
LIMITS = (
    "The verdict covers what was measured and nothing else. A pass says that these measurements, at their power and "
    "false-alarm rate, show no evidence of a backdoor; it is no proof that there is none."
)
REFIT = (
    "Downstream heads must be refitted on the cleaned encoder's features: cleaning moves the features, so a head that "
    "was fitted on the suspect's features fits them less well."
)
NOT_MEASURED = "not measured"

METRIC_TITLES = {
    "clean_accuracy": "Clean accuracy",
    "attack_success_rate": "Attack success rate",
    "attack_success_rate_all": "Attack success rate, over all images",
    "base_rate": "Base rate of the target class",
    "poison_accuracy": "Accuracy on triggered images",
    "knn_accuracy": "Clean accuracy, k nearest neighbours",
    "clean_accuracy_old_head": "Clean accuracy, old head",
    "attack_success_rate_old_head": "Attack success rate, old head",
    "canary_success_rate": "Success rate of our own canary",
    "canary_attack_success_rate": "Success rate of our own canary",
    "canary_similarity": "Similarity under our own canary",
    "clean_cosine": "Cosine of clean features, before to after",
    "clean_feature_cosine": "Cosine of clean features, before to after",
}
_SHARES = ("accuracy", "rate", "share", "fraction", "rate_all", "old_head")

OUTPUT_TITLES = {
    "model_uri": "Cleaned model",
    "alias": "Alias",
    "onnx_uri": "ONNX file",
    "report": "Report",
    "report_uri": "Report",
    "run_id": "Run",
    "run_url": "Run page",
    "model_url": "Model page",
}
DRILL_HEADER = ("Canary", "Target", "Planted", "After", "Base rate", "Outcome")
_CANARY_RATES = ("planted_success_rate", "success_rate", "base_rate")
_OWN_PLACE = ("command", "next", "policy")
"""Outputs that a view shows elsewhere than in its list of outputs."""


@dataclass(frozen=True)
class Row:
    """One line of the before/after table, as text."""

    key: str
    title: str
    before: str
    after: str
    change: str
    before_share: float | None
    after_share: float | None
    """Fractions in [0, 1] for a bar; `None` where the value is no share or was not measured."""


def rows(report: Report) -> list[Row]:
    """The before/after table: known measures in their usual order, then others as they came; not those of a drill."""
    before, after = report.metrics.get("before", {}), report.metrics.get("after", {})
    keys = [key for key in dict.fromkeys([*before, *after]) if not key.startswith("drill/")]
    order = {key: position for position, key in enumerate(METRIC_TITLES)}
    listed = [
        _row(key, before.get(key), after.get(key)) for key in sorted(keys, key=lambda key: order.get(key, len(order)))
    ]
    return listed if before else [replace(row, before="") for row in listed]  # a training has no before


def _row(key: str, before: float | None, after: float | None) -> Row:
    share = _is_share(key)
    change = ""
    if before is not None and after is not None:
        difference = (after - before) * (100 if share else 1)
        change = f"{difference:+.1f} pp" if share else f"{difference:+.3f}"
    return Row(
        key=key,
        title=metric_title(key),
        before=number(before, share),
        after=number(after, share),
        change=change,
        before_share=before if share else None,
        after_share=after if share else None,
    )


def metric_title(key: str) -> str:
    """A measure's name for a person; a key of the form ``name/detail`` keeps its detail.

    Example:
        >>> metric_title("attack_success_rate/patch"), metric_title("feature_drift")
        ('Attack success rate (patch)', 'Feature drift')
    """
    name, slash, detail = key.partition("/")
    if slash:
        return f"{metric_title(name)} ({plain(detail)})"
    return METRIC_TITLES.get(key) or _sentence(key)


def output_title(key: str) -> str:
    """An output's name for a person."""
    return OUTPUT_TITLES.get(key) or _sentence(key)


def number(value: float | None, share: bool) -> str:
    """A share in per cent with one decimal, another number with three, `not measured` for `None`."""
    if value is None:
        return NOT_MEASURED
    return f"{100 * value:.1f}%" if share else f"{value:.3f}"


def outputs(report: Report) -> list[tuple[str, str]]:
    """What was written and where, as (title, value); what is missing is left out."""
    known = {key: report.outputs[key] for key in OUTPUT_TITLES if key in report.outputs}
    return [
        ("Trained model" if key == "model_uri" and "trained" in report.subject else output_title(key), plain(value))
        for key, value in {**known, **report.outputs}.items()
        if value not in (None, "", [], {}) and key not in _OWN_PLACE
    ]


def next_commands(report: Report) -> list[str]:
    """The commands that the reader may want next."""
    commands = report.outputs.get("next") or []
    return [plain(command) for command in ([commands] if isinstance(commands, str) else commands)]


def parameters(report: Report) -> list[tuple[str, str, str, str]]:
    """The defence's parameters as (name, value, the paper's value, description)."""
    return [
        (
            plain(name),
            plain(item.get("value")),
            plain(item["paper"]) if item.get("paper") is not None else "",
            plain(item.get("description", "")),
        )
        if isinstance(item, dict) and "value" in item
        else (plain(name), plain(item), "", "")
        for name, item in (report.defense.get("parameters") or {}).items()
    ]


def drill(report: Report) -> tuple[list[str], list[tuple[str, ...]]]:
    """What a drill showed: sentences, and a line for each canary under `DRILL_HEADER`; both empty without a drill."""
    told = report.defense.get("drill")
    if not told:
        return [], []
    sentences = [plain(told["statement"])]
    loss = report.metrics.get("after", {}).get("drill/clean_accuracy_loss")
    if loss is not None:
        sentences.append(f"Each purification cost {100 * loss:.1f} points of clean accuracy on average.")
    lines = [
        (
            plain(f"{canary['family']}, {canary['trigger']}"),
            plain(canary["target"]),
            *("-" if canary[key] is None else number(canary[key], True) for key in _CANARY_RATES),
            plain(canary["outcome"] + (f": {canary['stopped']}" if canary["stopped"] else "")),
        )
        for canary in told["canaries"]
    ]
    return sentences, lines


def unmeasured(report: Report) -> list[tuple[str, str]]:
    """What was not measured and why; a null without a reason is named as such."""
    nulls = [key for side in report.metrics.values() for key, value in side.items() if value is None]
    reasons = dict.fromkeys(nulls, "no reason was recorded") | report.unmeasured
    return [(metric_title(key), plain(reason)) for key, reason in reasons.items()]


def plain(value: Any) -> str:
    """A value as one line of visible text: control, format and unassigned characters are spelled out.

    Names in a report may come from the suspect, and must not move a cursor, reverse the text or break a line.

    Example:
        >>> plain("models:/a\\x1b[2J\\u202e")
        'models:/a\\\\x1b[2J\\\\u202e'
    """
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return ", ".join(f"{plain(key)}: {plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    return "".join(map(_visible, " ".join(str(value).split()) if "\n" in str(value) else str(value)))


def _visible(character: str) -> str:
    if character.isascii() and character.isprintable():
        return character
    if unicodedata.category(character)[0] == "C" or unicodedata.category(character) in ("Zl", "Zp"):
        return character.encode("unicode_escape").decode("ascii")
    return character


def facts(values: dict[str, Any], without: Iterable[str] = ()) -> list[tuple[str, str]]:
    """A section of the report as (title, value)."""
    titles = {"uri": "URI", "sha256": "SHA-256"}
    hidden = set(without)
    return [
        (titles.get(key) or _sentence(key), plain(value))
        for key, value in values.items()
        if key not in hidden and value is not None
    ]


def environment(report: Report) -> list[tuple[str, str]]:
    """What the run ran in, the tool first, as (title, value)."""
    tool = {("tool" if key == "name" else f"tool_{key}"): value for key, value in report.tool.items()}
    return facts(tool) + facts(report.environment)


def _is_share(key: str) -> bool:
    return key.partition("/")[0].endswith(_SHARES)


def _sentence(key: str) -> str:
    text = plain(key).replace("_", " ")
    return text[:1].upper() + text[1:]
