"""Data sets as inputs of a run, with our own digest: MLflow's covers only the first 10,000 numbers."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, cast

from mlflow.data.dataset_source import DatasetSource
from mlflow.data.dataset_source_registry import _dataset_source_registry
from mlflow.entities import Dataset, DatasetInput, InputTag

from sanitize.data.images import ImageSet
from sanitize.tracking.faults import tracking_errors
from sanitize.tracking.store import Store

CONTEXT_TAG = "mlflow.data.context"
SHA256_TAG = "sanitize.sha256"
_DIGEST_LENGTH = 36  # MLflow's limit; the whole digest is in the tag and the profile


class ImageSource(DatasetSource):
    """Source of a logged image set: a DATA argument, also ``runs:/`` and ``models:/``, which MLflow's own do not take.

    Args:
        uri: DATA, as in the report.
        tracking_uri: Store that ``runs:/`` and ``models:/`` refer to; None means what MLflow would use.
    """

    def __init__(self, uri: str, tracking_uri: str | None = None) -> None:
        self.uri = uri
        self._tracking_uri = tracking_uri

    @staticmethod
    def _get_source_type() -> str:
        return "sanitize_images"

    def load(self, dst_path: str | None = None) -> str:
        """A local path with the data, or the name of a built-in set, as ``sanitize.data.load_images`` takes them."""
        if not self.uri.startswith(("runs:/", "models:/")):
            return self.uri
        uri, mark, rows = self.uri.partition("#")
        folder = Path(dst_path or tempfile.mkdtemp(prefix="sanitize-data-"))
        return f"{Store(self._tracking_uri).artifact(uri, folder)}{mark}{rows}"

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:
        return isinstance(raw_source, str) and raw_source.startswith(("runs:/", "models:/"))

    @classmethod
    def _resolve(cls, raw_source: Any) -> ImageSource:
        return cls(str(raw_source))

    def to_dict(self) -> dict[str, Any]:
        """JSON form: the URI alone, since a tracking URI may hold a password."""
        return {"uri": self.uri}

    @classmethod
    def from_dict(cls, source_dict: dict[Any, Any]) -> ImageSource:
        """Inverse of `to_dict`."""
        return cls(str(source_dict["uri"]))


_dataset_source_registry.register(cast(Any, ImageSource))  # so that mlflow.data.get_source() gives it back


def log_input(store: Store, run_id: str, images: ImageSet, context: str) -> None:
    """Log an image set as an input of a run.

    Args:
        store: Where the run is.
        run_id: The run.
        images: The set; its pixels stay here.
        context: What it was used for: ``clean``, ``probe`` or ``test``.

    Raises:
        TrackingError: The store refused.
    """
    entry = DatasetInput(
        dataset=_entity(images),
        tags=[InputTag(CONTEXT_TAG, context), InputTag(SHA256_TAG, images.sha256)],
    )
    with tracking_errors(f"could not log the data {images.uri or 'set'} as an input of run {run_id}"):
        store.client.log_inputs(run_id, datasets=[entry])


def _entity(images: ImageSet) -> Dataset:
    shape = [-1, *images.images.shape[1:]]
    tensor = {"type": "tensor", "name": "images", "tensor-spec": {"dtype": "uint8", "shape": shape}}
    label = {"type": "tensor", "name": "labels", "tensor-spec": {"dtype": "int64", "shape": [-1]}}
    targets = None if images.labels is None else json.dumps([label])
    classes = None if images.labels is None else len(set(images.labels.tolist()))
    profile = {
        "images": len(images),
        "image_size": images.image_size,
        "labelled": images.labels is not None,
        "classes": classes,
        "class_names": list(images.class_names or [])[:1000],
        "sha256": images.sha256,
    }
    return Dataset(
        name=_name(images.uri),
        digest=images.sha256[:_DIGEST_LENGTH],
        source_type=ImageSource._get_source_type(),
        source=ImageSource(images.uri).to_json(),
        schema=json.dumps({"mlflow_tensorspec": {"features": json.dumps([tensor]), "targets": targets}}),
        profile=json.dumps(profile),
    )


def _name(uri: str) -> str:
    """A short name for the UI: the last part of the URI."""
    return (uri.rstrip("/").rpartition("/")[2] or "images")[:200]
