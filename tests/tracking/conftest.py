"""Fixtures for the tracking room."""

from __future__ import annotations

import pytest

from sanitize.tracking import Store, register_model_file
from tests.tracking.cleaned_model import make_cleaned


@pytest.fixture
def cleaned(tmp_path):
    return make_cleaned(tmp_path / "cleaned")


@pytest.fixture
def store(store_uri):
    return Store(store_uri)


@pytest.fixture
def suspect_file(tmp_path):
    file = tmp_path / "suspect.pth"
    file.write_bytes(b"weights of a stranger")
    return file


@pytest.fixture
def suspect(store, suspect_file):
    """models:/suspect/1"""
    return register_model_file(store, suspect_file, "suspect")
