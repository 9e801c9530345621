"""Triggers: what makes a backdoored network misbehave. For evaluation, attacks and our own canaries only."""

from sanitize.data.triggers.base import Target, Trigger
from sanitize.data.triggers.frequency import FrequencyTrigger
from sanitize.data.triggers.generated import GeneratedTrigger
from sanitize.data.triggers.patch import PatchTrigger
from sanitize.data.triggers.patterns import htba_patch, sinusoid
from sanitize.data.triggers.warp import WarpTrigger

__all__ = [
    "FrequencyTrigger",
    "GeneratedTrigger",
    "PatchTrigger",
    "Target",
    "Trigger",
    "WarpTrigger",
    "htba_patch",
    "sinusoid",
]
