"""`sanitize.load`: a cleaned network back from the registry, without pickle."""

from __future__ import annotations

import tempfile
from pathlib import Path

from sanitize.export.package import read_package
from sanitize.suspects import Network
from sanitize.tracking import Store


def load(uri: str, *, tracking_uri: str | None = None, arch: str | None = None) -> Network:
    """The network of a version that `sanitize` registered, in eval mode on the CPU; its input is RGB in [0, 1].

    Args:
        uri: For example ``models:/suspect@sanitized``.
        tracking_uri: MLflow; its own default when left out.
        arch: Your ``file.py:function``, where the model was cleaned with one: code is never taken from the package.

    Raises:
        TrackingError: No such version.
        ArtifactError: The version was not written by `sanitize`, or differs from its digest.
    """
    store = Store(tracking_uri)
    with tempfile.TemporaryDirectory() as folder:
        package = store.download(store.resolve(uri), Path(folder) / "package")
        return read_package(package, architecture=arch)
