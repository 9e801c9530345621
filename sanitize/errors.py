"""Every error that `sanitize` raises on purpose.

The tree; the command line maps all of it to exit code 2::

    SanitizeError
    ├── ConfigError            an option, recipe, policy or argument is wrong
    ├── DataError              images or labels are missing, unreadable or unfit
    ├── ArtifactError          a model file is missing, corrupt, or in a format that is not read
    │   └── UnsafeArtifactError    reading it the usual way would run code that its author chose
    ├── ArchitectureError      weights and network do not belong together
    ├── TrainingError          a loss or a network became non-finite
    ├── TrackingError          the MLflow server, registry or store refused or is out of reach
    ├── WorkdirError           the work directory is in use, not writable, or holds another job
    └── ExportError            the cleaned model could not be written, or what was written differs from it

A message says what happened, where, and what to do about it.
"""

from __future__ import annotations


class SanitizeError(Exception):
    """Root of all errors that `sanitize` raises on purpose."""


class ConfigError(SanitizeError):
    """An option, recipe, policy or argument is wrong."""


class DataError(SanitizeError):
    """Images or labels are missing, unreadable or unfit for the purpose."""


class ArtifactError(SanitizeError):
    """A model file is missing, corrupt, or in a format that is not read."""


class UnsafeArtifactError(ArtifactError):
    """Reading this file the usual way would run code that its author chose."""


class ArchitectureError(SanitizeError):
    """Weights and network do not belong together."""


class TrainingError(SanitizeError):
    """A loss or a network became non-finite."""


class TrackingError(SanitizeError):
    """The MLflow server, registry or store refused, or is out of reach."""


class WorkdirError(SanitizeError):
    """The work directory is in use, not writable, full, or holds another job."""


class ExportError(SanitizeError):
    """The cleaned model could not be written, or what was written differs from it."""
