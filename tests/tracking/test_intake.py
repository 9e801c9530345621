from __future__ import annotations

import os
import pickle

import pytest

from sanitize.errors import TrackingError, UnsafeArtifactError
from sanitize.tracking import Store, register_data, register_model_file
from sanitize.tracking.digests import sha256_of


class Bomb:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def test_a_hostile_file_is_stored_as_it_is_and_never_loaded(store, tmp_path):
    file = tmp_path / "model.pth"
    file.write_bytes(pickle.dumps(Bomb(tmp_path / "canary")))
    reference = register_model_file(store, file, "suspect")

    assert reference.pinned_uri == "models:/suspect/1"
    copy = store.download(reference, tmp_path / "quarantine")
    assert copy == tmp_path / "quarantine" / "model.pth"
    assert copy.read_bytes() == file.read_bytes()
    assert not (tmp_path / "canary").exists()
    version = store.client.get_model_version("suspect", "1")
    assert version.tags == {
        "sanitize.kind": "model",
        "sanitize.file": "model.pth",
        "sanitize.sha256": sha256_of(file),
    }
    run = store.client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert store.client.get_experiment(run.info.experiment_id).name == "sanitize-intake"


def test_a_second_file_becomes_the_second_version(store, suspect, suspect_file):
    suspect_file.write_bytes(b"other weights")
    assert register_model_file(store, suspect_file, "suspect").version == "2"


def test_data_folders_and_files(store, tmp_path):
    folder = tmp_path / "images"
    for name in ("cats/1.png", "dogs/1.png"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(name.encode())
    register_data(store, folder, "scraped")
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    register_data(store, tmp_path / "train.parquet", "scraped")

    assert sha256_of(store.artifact("models:/scraped/1", tmp_path / "copy1")) == sha256_of(folder)
    assert store.artifact("models:/scraped/2", tmp_path / "copy2").name == "train.parquet"
    assert store.client.get_registered_model("scraped").tags["sanitize.kind"] == "data"


def test_models_and_data_do_not_share_a_name(store, suspect, suspect_file):
    with pytest.raises(TrackingError, match="models:/suspect is a model; choose another --name for a data set"):
        register_data(store, suspect_file, "suspect")
    register_data(store, suspect_file, "data")
    with pytest.raises(TrackingError, match="models:/data is a data set"):
        register_model_file(store, suspect_file, "data")


@pytest.mark.parametrize("name", ["", " a", "a/b", "a:b", "a@b", "a#b", "a\nb", "it's"])
def test_bad_names(store, suspect_file, name):
    with pytest.raises(TrackingError, match="cannot be the name"):
        register_model_file(store, suspect_file, name)


def test_missing_and_empty(store, tmp_path):
    with pytest.raises(TrackingError, match="there is no file or folder"):
        register_model_file(store, tmp_path / "none.pth", "suspect")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrackingError, match="has no files"):
        register_data(store, tmp_path / "empty", "scraped")


def test_links_are_refused(store, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "1.png").write_bytes(b"1")
    (folder / "2.png").symlink_to("/etc/passwd")
    with pytest.raises(UnsafeArtifactError, match=r"2\.png is a link"):
        register_data(store, folder, "scraped")
    assert not store.client.search_registered_models()


@pytest.mark.parametrize("broken", ["log_artifact", "create_model_version", "list_artifacts"])
def test_nothing_half_made(store, suspect_file, monkeypatch, broken):
    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.client, broken, refuse)
    with pytest.raises(TrackingError, match="No space left on device"):
        register_model_file(store, suspect_file, "suspect")
    monkeypatch.undo()
    assert not store.client.search_registered_models()
    (run,) = store.client.search_runs([store.experiment("sanitize-intake")])
    assert run.info.status == "FAILED"


def test_nothing_is_printed(tmp_path, suspect_file, capfd):
    register_model_file(Store(f"sqlite:///{tmp_path}/new.db"), suspect_file, "suspect")
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "INFO" not in captured.err
