"""From measurements to a verdict, with reasons. Nothing that was skipped ever reads as a pass."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from sanitize.types import Metrics, Verdict


class Policy(BaseModel):
    """Thresholds of a verdict on a purified encoder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "default"
    maximum_attack_success_rate: float = Field(0.10, ge=0, le=1)
    maximum_clean_accuracy_loss: float = Field(0.02, ge=0, le=1)
    established_attack_success_rate: float = Field(
        0.5, ge=0, le=1, description="a trigger below this on the suspect shows nothing by being absent later"
    )


def judge_purification(
    before: Metrics, after: Metrics, *, destroyed: str | None, policy: Policy
) -> tuple[Verdict, list[str]]:
    """Verdict on the result of a purification.

    `pass` needs a known trigger that worked on the suspect and no longer works, and clean accuracy kept: the
    defence's own canary alone never gives it.

    Args:
        before: Metrics of the suspect.
        after: Metrics of the result.
        destroyed: Why the defence stopped itself, or None.
        policy: Thresholds.

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
        open_questions.append(
            "clean accuracy was not measured; give labelled images with --probe-data and --test-data to settle it"
        )
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
