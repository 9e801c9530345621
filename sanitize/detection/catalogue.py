"""Detectors of backdoored models by name; one is one file and one line here."""

from __future__ import annotations

from sanitize.detection.collapse import FeatureCollapse
from sanitize.detection.decree import DECREE
from sanitize.detection.model import ModelDetector
from sanitize.errors import ConfigError
from sanitize.types import did_you_mean

MODEL_DETECTORS: dict[str, type[ModelDetector]] = {detector.name: detector for detector in (FeatureCollapse, DECREE)}


def model_detector_named(name: str) -> type[ModelDetector]:
    """The class of a detector.

    Raises:
        ConfigError: The name is unknown.

    Example:
        >>> model_detector_named("decree").summary[:4]
        'size'
    """
    if name not in MODEL_DETECTORS:
        raise ConfigError(f"unknown detector {name!r}. {did_you_mean(name, MODEL_DETECTORS)}")
    return MODEL_DETECTORS[name]
