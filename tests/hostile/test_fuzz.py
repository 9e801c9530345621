"""A short sample of the fuzzing in benchmarks/fuzz.py; the seed is fixed, so that a failure can be repeated."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.fuzz import mutate

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux"),
    pytest.mark.filterwarnings("ignore"),  # Pillow's, about damaged pictures
]


@pytest.mark.parametrize("reader", ["model", "safetensors", "mlmodel", "parquet", "npz", "png"])
def test_no_mutation_ends_badly(reader: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tried, bad = mutate(reader, seconds=1, seed=7, crashes=tmp_path)
    assert tried > 20
    assert bad == 0, capsys.readouterr().err
