"""Suspects: from an untrusted artifact to a network of ours, without executing anything that the artifact holds."""

from sanitize.suspects.architectures import Architecture, architecture_names, build
from sanitize.suspects.networks import Classifier, Encoder, Network, wrap
from sanitize.suspects.quarantine import admit
from sanitize.suspects.readers import Tensors, read_tensors
from sanitize.suspects.rebuild import Rebuilt, rebuild
from sanitize.suspects.untrained import untrained

__all__ = [
    "Architecture",
    "Classifier",
    "Encoder",
    "Network",
    "Rebuilt",
    "Tensors",
    "admit",
    "architecture_names",
    "build",
    "read_tensors",
    "rebuild",
    "untrained",
    "wrap",
]
