"""The corpus against the real readers: refused with a clear error, or read as numbers; nothing runs, nothing hangs."""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sanitize.data import load_images
from sanitize.errors import DataError
from tests.hostile import archives, datasets, pickles, reading
from tests.hostile.corpus import ARTIFACTS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux")
MEMORY = 700 << 20
"""Highest growth of the reading process in bytes."""


@pytest.fixture(scope="module")
def run():
    """Calls a function of `reading` in a fresh process, forked from one that has the libraries loaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([reading.__name__])

    def call(function: Callable[..., None], *arguments: object):
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=function, args=(*arguments, theirs))
        process.start()
        theirs.close()
        try:
            assert mine.poll(120), f"{arguments}: no answer"
            return mine.recv()
        except EOFError:
            process.join()
            pytest.fail(f"{arguments}: the reader died with code {process.exitcode}")
        finally:
            process.kill()
            process.join()

    return call


@pytest.mark.parametrize("name", pickles.ARMED)
def test_the_payloads_work_on_an_ordinary_loader(name: str, run, tmp_path: Path):
    file = tmp_path / "payload.pkl"
    file.write_bytes(pickles.ARMED[name][0](tmp_path))
    left = run(reading.detonate, file)
    assert (tmp_path / pickles.CANARY).exists(), f"it does not work, so it proves nothing: {left}"


@pytest.mark.parametrize("name", ARTIFACTS)
def test_refused_or_read_without_effect(name: str, run, tmp_path: Path):
    artifact = ARTIFACTS[name]
    path = artifact.build(tmp_path)
    before = sorted(item.relative_to(tmp_path).as_posix() for item in tmp_path.rglob("*"))
    error, message, rules, seconds, memory = run(reading.examine, path, artifact.reader)
    assert not (tmp_path / pickles.CANARY).exists()
    assert sorted(item.relative_to(tmp_path).as_posix() for item in tmp_path.rglob("*")) == before
    if artifact.refused is None:
        assert error is None, message
        assert artifact.finding is None or artifact.finding in rules
    else:
        assert error is not None, f"it was read, with the findings {rules}"
        assert "SanitizeError" in error, message
        assert artifact.error in (*error, "*"), f"{error[0]}: {message}"
        assert re.search(artifact.refused, message, re.DOTALL), message
        assert message.isprintable() or "\n" in message
        assert len(message) < 3000
    assert seconds < reading.SECONDS, f"{seconds:.1f} s"
    assert memory < MEMORY, f"{memory >> 20} MiB"


@pytest.mark.parametrize("place", ["images/a.png", "images"])
def test_links_in_a_registered_data_set_are_not_followed(place: str, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "private.png").write_bytes(datasets.PNG)
    link = tmp_path / "set" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "mine" / ("private.png" if place.endswith("png") else ""))
    with pytest.raises(DataError, match="has a link"):
        load_images("models:/scraped/1", resolve=lambda _: tmp_path / "set")


def test_the_corpus_is_large_and_has_every_kind():
    assert len(ARTIFACTS) >= 60
    assert archives.GOOD and datasets.PNG  # imported, so that they enter theirs
    assert {artifact.reader for artifact in ARTIFACTS.values()} == {"model", "data"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["pickle-build", "zip-overlapping-bomb", "parquet-half"],
)
def test_the_command_refuses_with_one_paragraph_and_registers_nothing(name: str, store_uri: str, tmp_path: Path):
    folder = tmp_path / "artifact"
    folder.mkdir()
    path = ARTIFACTS[name].build(folder)
    command = [sys.executable, "-m", "sanitize", "intake", str(path), "--name", "hostile", "--tracking-uri", store_uri]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "80"}, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1, done.stderr
    assert not (folder / pickles.CANARY).exists()
    from mlflow import MlflowClient

    assert not MlflowClient(store_uri).search_registered_models()
