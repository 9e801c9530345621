"""Known backdoors, for drills, tests and benchmarks; no defence imports from here."""

from sanitize.attacks.badencoder import BadEncoder

__all__ = ["BadEncoder"]
