"""From measurements to a verdict, with reasons. Nothing that was skipped ever reads as a pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from sanitize.types import Finding, Metrics, ModelKind, Severity, Verdict


class Policy(BaseModel):
    """Thresholds of a verdict on a purified network."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "default"
    maximum_attack_success_rate: float = Field(0.10, ge=0, le=1)
    maximum_clean_accuracy_loss: float = Field(0.02, ge=0, le=1)
    established_attack_success_rate: float = Field(
        0.5, ge=0, le=1, description="a trigger below this on the suspect shows nothing by being absent later"
    )
    false_alarm_rate: float = Field(
        0.05, gt=0, lt=1, description="of a scan: share of clean models that may be called suspicious"
    )
    minimum_references: int = Field(
        5, ge=2, description="of a scan: with fewer clean references its numbers settle nothing"
    )


def judge_purification(
    before: Metrics, after: Metrics, *, destroyed: str | None, policy: Policy, kind: ModelKind = "encoder"
) -> tuple[Verdict, list[str]]:
    """Verdict on the result of a purification.

    `pass` needs a known trigger that worked on the suspect and no longer works, and clean accuracy kept: the
    defence's own canary alone never gives it.

    Args:
        before: Metrics of the suspect.
        after: Metrics of the result.
        destroyed: Why the defence stopped itself, or None.
        policy: Thresholds.
        kind: Of the network; it decides what is to be given where something was not measured.

    Returns:
        Verdict and at least one reason.

    Example:
        >>> judge_purification({}, {}, destroyed=None, policy=Policy())[0]
        <Verdict.INCONCLUSIVE: 'inconclusive'>
    """
    failures: list[str] = []
    open_questions: list[str] = []
    kept: list[str] = []
    if destroyed:
        failures.append(destroyed)
    accuracy, kept_accuracy = before.get("clean_accuracy"), after.get("clean_accuracy")
    if accuracy is None or kept_accuracy is None:
        options = "--probe-data and --test-data" if kind == "encoder" else "--test-data"
        open_questions.append(f"clean accuracy was not measured; give labelled images with {options} to settle it")
    else:
        text = f"clean accuracy {accuracy:.1%} before, {kept_accuracy:.1%} after (allowed loss "
        text += f"{policy.maximum_clean_accuracy_loss:.1%})"
        (failures if accuracy - kept_accuracy > policy.maximum_clean_accuracy_loss else kept).append(text)
    worked, works = before.get("attack_success_rate"), after.get("attack_success_rate")
    if worked is None or works is None:
        open_questions.append(
            "no known trigger could be tried, and the defence's own canary proves nothing about another's; "
            "a trigger (--trigger) that works on the suspect would settle it"
        )
    else:
        text = f"attack success rate {worked:.1%} before, {works:.1%} after (allowed "
        text += f"{policy.maximum_attack_success_rate:.1%})"
        if works > policy.maximum_attack_success_rate:
            failures.append(text)
        elif worked < policy.established_attack_success_rate:
            open_questions.append(
                f"the given trigger hardly works on the suspect (attack success rate {worked:.1%}), "
                "so that its absence afterwards shows nothing"
            )
        else:
            kept.append(text)
    if failures:
        return Verdict.FAIL, failures + open_questions
    if open_questions:
        return Verdict.INCONCLUSIVE, open_questions + kept
    return Verdict.PASS, kept


def judge_scan(
    chances: Mapping[str, float], references: int, artifact_findings: Sequence[Finding], policy: Policy
) -> tuple[Verdict, list[str]]:
    """Verdict on a model that was only looked at.

    Args:
        chances: Measure -> chance that a clean model is at least as extreme (see `sanitize.functional.null`).
        references: How many clean models that rests on.
        artifact_findings: What the model's files would have done.
        policy: False-alarm rate, shared evenly by the measures (Bonferroni), and the smallest number of references.

    Returns:
        Verdict and at least one reason.

    Example:
        >>> judge_scan({"collapse_patch": 0.0001}, 8, [], Policy())[0]
        <Verdict.FAIL: 'fail'>
    """
    failures = [finding.message for finding in artifact_findings if finding.severity is Severity.ERROR]
    limit = policy.false_alarm_rate / max(1, len(chances))
    told = f"{references} clean references, at a false-alarm rate of {policy.false_alarm_rate:.0%}"
    if references >= policy.minimum_references:
        failures += [
            f"{name} is out of line with {told}: a clean model is that extreme with chance {chance:.2g}"
            for name, chance in chances.items()
            if chance < limit
        ]
    if failures:
        return Verdict.FAIL, failures
    if references < policy.minimum_references:
        return Verdict.INCONCLUSIVE, [
            f"{references} clean references were given, and {policy.minimum_references} are needed to say what clean "
            "models of this architecture look like; give more with --reference"
        ]
    smallest = min(chances.values())
    return Verdict.PASS, [
        f"no evidence of a backdoor in {len(chances)} measures, judged by {told} (smallest chance {smallest:.2g}, "
        f"alarm below {limit:.2g}); backdoors that leave these measures alone are not seen"
    ]
