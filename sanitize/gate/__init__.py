"""The gate of a registry: scan, decide, and move the alias; once for each model, data and policy."""

from sanitize.gate.decision import APPROVED_ALIAS, Decision
from sanitize.gate.gate import Gate
from sanitize.gate.waivers import Waiver, load_waivers

__all__ = ["APPROVED_ALIAS", "Decision", "Gate", "Waiver", "load_waivers"]
