"""From measurements to a verdict, with reasons. Nothing that was skipped ever reads as a pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sanitize.evaluation.removal import DrillResult, canaries_needed
from sanitize.policies import Policy
from sanitize.types import Finding, Metrics, ModelKind, Severity, Verdict


def judge_purification(
    before: Metrics,
    after: Metrics,
    *,
    destroyed: str | None,
    policy: Policy,
    kind: ModelKind = "encoder",
    drill: DrillResult | None = None,
) -> tuple[Verdict, list[str]]:
    """Verdict on the result of a purification.

    `pass` needs clean accuracy kept, and a known trigger that worked on the suspect and no longer works, or a drill
    that meets the policy's `minimum_removal_bound`: the defence's own canary alone never gives it. Where the policy has
    no such bound, a drill is told and decides nothing.

    Args:
        before: Metrics of the suspect.
        after: Metrics of the result.
        destroyed: Why the defence stopped itself, or None.
        policy: Thresholds.
        kind: Of the network; it decides what is to be given where something was not measured.
        drill: What became of the canaries, where there were any.

    Returns:
        Verdict and at least one reason.

    Example:
        >>> judge_purification({}, {}, destroyed=None, policy=Policy())[0]
        <Verdict.INCONCLUSIVE: 'inconclusive'>
    """
    reasons = _Reasons()
    if destroyed:
        reasons.failures.append(destroyed)
    _judge_accuracy(before, after, policy, kind, reasons)
    drilled = _judge_drill(drill, policy, reasons)
    _judge_trigger(before, after, policy, reasons, drilled=drilled)
    if reasons.failures:
        return Verdict.FAIL, reasons.failures + reasons.open_questions
    if reasons.open_questions:
        return Verdict.INCONCLUSIVE, reasons.open_questions + reasons.kept
    return Verdict.PASS, reasons.kept


@dataclass
class _Reasons:
    failures: list[str] = field(default_factory=list)
    open_questions: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)


def _judge_accuracy(before: Metrics, after: Metrics, policy: Policy, kind: ModelKind, reasons: _Reasons) -> None:
    accuracy, kept_accuracy = before.get("clean_accuracy"), after.get("clean_accuracy")
    if accuracy is None or kept_accuracy is None:
        options = "--probe-data and --test-data" if kind == "encoder" else "--test-data"
        reasons.open_questions.append(
            f"clean accuracy was not measured; give labelled images with {options} to settle it"
        )
        return
    text = f"clean accuracy {accuracy:.1%} before, {kept_accuracy:.1%} after (allowed loss "
    text += f"{policy.maximum_clean_accuracy_loss:.1%})"
    lost_too_much = accuracy - kept_accuracy > policy.maximum_clean_accuracy_loss
    (reasons.failures if lost_too_much else reasons.kept).append(text)


def _judge_trigger(before: Metrics, after: Metrics, policy: Policy, reasons: _Reasons, *, drilled: bool) -> None:
    """What a known trigger says. Where a drill has settled it (`drilled`), one that says nothing leaves no question."""
    without_evidence = reasons.kept if drilled else reasons.open_questions
    worked, works = before.get("attack_success_rate"), after.get("attack_success_rate")
    if worked is None or works is None:
        without_evidence.append(
            "no known trigger could be tried"
            if drilled
            else "no known trigger could be tried, and the defence's own canary proves nothing about another's; "
            "a trigger (--trigger) that works on the suspect would settle it"
        )
        return
    text = f"attack success rate {worked:.1%} before, {works:.1%} after (allowed "
    text += f"{policy.maximum_attack_success_rate:.1%})"
    if works > policy.maximum_attack_success_rate:
        reasons.failures.append(text)
    elif worked < policy.established_attack_success_rate:
        without_evidence.append(
            f"the given trigger hardly works on the suspect (attack success rate {worked:.1%}), "
            "so that its absence afterwards shows nothing"
        )
    else:
        reasons.kept.append(text)


def _judge_drill(drill: DrillResult | None, policy: Policy, reasons: _Reasons) -> bool:
    """What a drill says; whether it meets what the policy requires."""
    required = policy.minimum_removal_bound
    if required is None:
        if drill is not None:
            reasons.kept.append(drill.statement)
        return False
    asked = f"the policy {policy.name} requires {required:.1%}"
    if drill is None:
        reasons.open_questions.append(
            f"{asked} as lower bound of the removal rate, and no drill was run; --drill {canaries_needed(required)} "
            "settles it if no canary survives"
        )
        return False
    text = f"{drill.statement} ({asked})"
    met = drill.bound is not None and drill.bound >= required
    if met:
        reasons.kept.append(text)
    elif drill.survived:
        reasons.failures.append(text)
    else:
        reasons.open_questions.append(f"{text}; it takes {canaries_needed(required)} that took, and none may survive")
    return met


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
    if not chances:
        return Verdict.INCONCLUSIVE, [
            "no measure that tells backdoored models from clean ones was obtained; see what was not measured, and why"
        ]
    smallest = min(chances.values())
    return Verdict.PASS, [
        f"no evidence of a backdoor in {len(chances)} measures, judged by {told} (smallest chance {smallest:.2g}, "
        f"alarm below {limit:.2g}); backdoors that leave these measures alone are not seen"
    ]
