"""Fixtures for all tests."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A new SQLite store; making one takes seconds, so each test gets a copy."""
    from sanitize.tracking.contact import create_sqlite

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    create_sqlite(file)
    return file


@pytest.fixture
def store_uri(empty_store: Path, tmp_path: Path) -> str:
    """URI of a fresh store whose artifacts lie beside it, in tmp_path."""
    file = tmp_path / "mlflow.db"
    shutil.copyfile(empty_store, file)
    with sqlite3.connect(file) as database:  # the default experiment names the folder of the store that was copied
        database.execute("UPDATE experiments SET artifact_location = ?", ((tmp_path / "mlartifacts" / "0").as_uri(),))
    database.close()
    return f"sqlite:///{file}"
