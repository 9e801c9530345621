"""A cleaned data set in the registry: once a run, under the name of data only."""

from __future__ import annotations

import pytest

from sanitize.data import load_images
from sanitize.data.writing import write_parquet
from sanitize.errors import TrackingError
from sanitize.tracking import RunRecorder, Store, register_data, register_model_file
from sanitize.tracking.clean_data import release_data
from sanitize.types import Verdict


@pytest.fixture
def file(tmp_path):
    return write_parquet(load_images("digits#0:20"), tmp_path / "images.parquet")


def released(store, recorder, file, name, reference=None):
    return release_data(
        store,
        recorder,
        file,
        name=name,
        parent="somewhere",
        reference=reference,
        method="fct",
        verdict=Verdict.FAIL,
        description="what is left",
    )


def test_a_resumed_run_finds_the_version_that_it_has_made(store_uri, file, tmp_path):
    store = Store(store_uri)
    suspect = register_data(store, file, "scraped")
    with RunRecorder(store) as recorder:
        assert released(store, recorder, file, "scraped", suspect) == "models:/scraped/2"
        assert released(store, recorder, file, "scraped", suspect) == "models:/scraped/2"
    with RunRecorder(store) as recorder:
        assert released(store, recorder, file, "scraped") == "models:/scraped/3"
    assert store.client.get_model_version("scraped", "1").tags["sanitize.cleaned"] == "models:/scraped/2"
    copied = store.artifact("models:/scraped/2", tmp_path / "copy")
    assert copied.read_bytes() == file.read_bytes()


def test_a_name_of_models_is_refused(store_uri, file):
    store = Store(store_uri)
    register_model_file(store, file, "suspect")
    with RunRecorder(store) as recorder, pytest.raises(TrackingError, match="is a model"):
        released(store, recorder, file, "suspect")
    assert len(store.versions("suspect")) == 1
