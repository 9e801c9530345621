"""Detectors of poisoned images by name: a score an image, and a decision that may be "no evidence"."""

from sanitize.detection.base import DataDetector, Scores, Split
from sanitize.detection.fct import FCT
from sanitize.detection.patchsearch import PatchSearch
from sanitize.detection.poisoncam import PoisonCAM
from sanitize.errors import ConfigError
from sanitize.types import did_you_mean

DETECTORS: dict[str, type[DataDetector]] = {detector.name: detector for detector in (FCT, PoisonCAM, PatchSearch)}


def detector_named(name: str) -> type[DataDetector]:
    """The class of a detector of poisoned images.

    Raises:
        ConfigError: The name is unknown.

    Example:
        >>> detector_named("fct").kind
        'classifier'
    """
    if name not in DETECTORS:
        raise ConfigError(f"unknown method {name!r}. {did_you_mean(name, DETECTORS)}")
    return DETECTORS[name]


__all__ = ["DETECTORS", "FCT", "DataDetector", "PatchSearch", "PoisonCAM", "Scores", "Split", "detector_named"]
