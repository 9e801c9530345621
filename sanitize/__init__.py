"""Find and remove backdoors in image encoders, classifiers and data sets, from an MLflow registry and back into it.

Example:
    >>> from sanitize import BMAIU, Sanitizer
    >>> sanitizer = Sanitizer(defense=BMAIU(unlearn_weight=5.0, epochs=10), seed=0)
    >>> sanitizer.defense.epochs
    10
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sanitize.data import ImageSet, PatchTrigger, Trigger, load_images
    from sanitize.defenses import BMAIU, DBR, UAU, Defense
    from sanitize.errors import (
        ArchitectureError,
        ArtifactError,
        ConfigError,
        DataError,
        ExportError,
        SanitizeError,
        TrackingError,
        TrainingError,
        UnsafeArtifactError,
        WorkdirError,
    )
    from sanitize.loading import load
    from sanitize.policies import Policy
    from sanitize.sanitizer import Sanitizer
    from sanitize.suspects import Classifier, Encoder
    from sanitize.types import Finding, Report, Verdict

# Name -> module. Imported on first use: `sanitize --help` must not wait for torch and MLflow.
_HOMES = {
    "ArchitectureError": "sanitize.errors",
    "ArtifactError": "sanitize.errors",
    "BMAIU": "sanitize.defenses",
    "Classifier": "sanitize.suspects",
    "ConfigError": "sanitize.errors",
    "DBR": "sanitize.defenses",
    "DataError": "sanitize.errors",
    "Defense": "sanitize.defenses",
    "Encoder": "sanitize.suspects",
    "ExportError": "sanitize.errors",
    "Finding": "sanitize.types",
    "ImageSet": "sanitize.data",
    "PatchTrigger": "sanitize.data",
    "Policy": "sanitize.policies",
    "Report": "sanitize.types",
    "SanitizeError": "sanitize.errors",
    "Sanitizer": "sanitize.sanitizer",
    "TrackingError": "sanitize.errors",
    "TrainingError": "sanitize.errors",
    "Trigger": "sanitize.data",
    "UAU": "sanitize.defenses",
    "UnsafeArtifactError": "sanitize.errors",
    "Verdict": "sanitize.types",
    "WorkdirError": "sanitize.errors",
    "load": "sanitize.loading",
    "load_images": "sanitize.data",
}

__all__ = [
    "BMAIU",
    "DBR",
    "UAU",
    "ArchitectureError",
    "ArtifactError",
    "Classifier",
    "ConfigError",
    "DataError",
    "Defense",
    "Encoder",
    "ExportError",
    "Finding",
    "ImageSet",
    "PatchTrigger",
    "Policy",
    "Report",
    "SanitizeError",
    "Sanitizer",
    "TrackingError",
    "TrainingError",
    "Trigger",
    "UnsafeArtifactError",
    "Verdict",
    "WorkdirError",
    "load",
    "load_images",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sanitize' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
