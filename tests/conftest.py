"""Fixtures for all tests."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from pathlib import Path

import pytest

from tests.classifiers import Classifiers, load_classifiers
from tests.encoders import Encoders, load_encoders
from tests.trained import unpack


def copied_store(empty: Path, folder: Path) -> str:
    """URI of a copy of an empty store in `folder`, its artifacts beside it."""
    file = folder / "mlflow.db"
    shutil.copyfile(empty, file)
    with sqlite3.connect(file) as database:  # the default experiment names the folder of the store that was copied
        database.execute("UPDATE experiments SET artifact_location = ?", ((folder / "mlartifacts" / "0").as_uri(),))
    database.close()
    return f"sqlite:///{file}"


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A new SQLite store; making one takes seconds, so each test gets a copy."""
    from sanitize.tracking.contact import create_sqlite

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    create_sqlite(file)
    return file


@pytest.fixture(autouse=True)
def mlflow_as_found():
    """No test leaves MLflow pointed at a store: the next one in the same process would use it."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    yield
    if "mlflow" in sys.modules:
        left = sys.modules["mlflow"].tracking._tracking_service.utils._tracking_uri
        sys.modules["mlflow"].set_tracking_uri(None)
        assert left is None, f"mlflow.set_tracking_uri({left!r}) was left behind; undo it with set_tracking_uri(None)"
    assert os.environ.get("MLFLOW_TRACKING_URI") == before, "MLFLOW_TRACKING_URI was changed and not set back"


@pytest.fixture
def store_uri(empty_store: Path, tmp_path: Path) -> str:
    """URI of a fresh store whose artifacts lie beside it, in tmp_path."""
    return copied_store(empty_store, tmp_path)


@pytest.fixture(scope="session")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Encoders:
    """A clean and a backdoored encoder of digits."""
    return load_encoders(unpack("encoders", tmp_path_factory.mktemp("trained") / "encoders"))


@pytest.fixture(scope="session")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> Classifiers:
    """A clean and a backdoored classifier of digits."""
    return load_classifiers(unpack("classifiers", tmp_path_factory.mktemp("trained") / "classifiers"))


@pytest.fixture(scope="session")
def reference_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Checkpoints of five clean encoders of the same architecture."""
    return sorted(unpack("references", tmp_path_factory.mktemp("trained") / "references").glob("*.pth"))


@pytest.fixture
def suspect(store_uri: str, encoders: Encoders) -> str:
    """A store with models:/suspect/1: the backdoored encoder, bound with its data and its trigger."""
    from sanitize.intake import Knowledge, take_in

    known = Knowledge(
        data="digits#0:420",
        probe_data="digits#0:600",
        test_data="digits#1400:",
        triggers=(encoders.trigger_file,),
        arch="small-cnn",
        normalization="half",
        image_size=32,
    )
    take_in(encoders.backdoored_file, "suspect", known, tracking_uri=store_uri)
    return store_uri
