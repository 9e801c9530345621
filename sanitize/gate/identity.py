"""Digests of what a verdict rests on: cheap ones, of files as they are, so that nothing is decoded to find them."""

from __future__ import annotations

import re
from pathlib import Path

from sanitize.data import Trigger
from sanitize.data.rows import Rows
from sanitize.errors import DataError
from sanitize.inputs import Request, code_digest
from sanitize.policies import Policy
from sanitize.suspects.quarantine import digest
from sanitize.tracking import Store
from sanitize.tracking.digests import sha256_of, sha256_of_text

_BUILT_IN = re.compile(r"digits|torchvision:")
_OF_MODELS = ("arch", "normalization", "image_size", "kind", "allow_stubbed")


def identity_of_model(store: Store, uri: str, folder: Path) -> str:
    """Digest of a version's files, as they are in the store now."""
    return digest(store.download(store.resolve(uri), folder))


def identity_of_data(store: Store, source: str | None, folder: Path) -> str:
    """Digest of a data set's files with the rows that are taken; the name of a built-in set.

    Raises:
        DataError: There is no such file.
    """
    if source is None or _BUILT_IN.match(source):
        return source or ""
    name, _ = Rows.split(source)
    rows = source.removeprefix(name)
    if name.startswith(("runs:/", "models:/")):
        return sha256_of(store.artifact(name, folder)) + rows
    path = Path(name).expanduser()
    if not path.exists():
        raise DataError(f"{source} does not exist.")
    return sha256_of(path) + rows


def identity_of_request(store: Store, request: Request, folder: Path) -> dict[str, str]:
    """Everything that a complete request says beside the model."""
    parts = {name: str(getattr(request, name)) for name in _OF_MODELS}
    parts["architecture code"] = code_digest(request.arch or "")
    for name in ("data", "probe_data", "test_data"):
        parts[name] = identity_of_data(store, getattr(request, name), folder / name)
    parts["triggers"] = " ".join(Trigger.from_yaml(Path(trigger)).sha256 for trigger in request.triggers)
    return parts


def identity_of_policy(policy: Policy) -> str:
    """Digest of the thresholds; where they were read from does not matter."""
    return sha256_of_text(policy.model_dump_json(exclude={"file", "sha256"}))
