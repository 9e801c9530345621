"""Triggers: what makes a backdoored network misbehave. For evaluation, attacks and our own canaries only."""

from sanitize.data.triggers.base import Target, Trigger
from sanitize.data.triggers.patch import PatchTrigger

__all__ = ["PatchTrigger", "Target", "Trigger"]
