"""The truth about a planted backdoor: apart from the suspect, out of the defences' sight, and tamper-evident."""

from __future__ import annotations

import ast
import io
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient

import sanitize
from sanitize.data import load_images
from sanitize.errors import DataError, TrackingError
from sanitize.red_team import AttackRequest, RedTeam
from sanitize.rehearsal import rehearse
from sanitize.suspects import untrained
from sanitize.tracking import Store
from sanitize.tracking.truth import DIGEST_TAG, EXPERIMENT, PLANTED_TAG, read_truth
from sanitize.trainers import SimCLR

ROOMS_OF_DEFENCES = ("data", "defenses", "functional", "suspects", "trainers", "training")


@pytest.fixture
def store(store_uri):
    return Store(store_uri)


@pytest.fixture
def poisoned(store_uri):
    """models:/images/1"""
    team = RedTeam("ssl-backdoor", seed=3, tracking_uri=store_uri)
    return team.run(AttackRequest(data="digits#0:420", register="images"))


def modules(room: str) -> list[Path]:
    return sorted((Path(sanitize.__file__).parent / room).rglob("*.py"))


def imported(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found


def within(names: set[str], module: str) -> set[str]:
    return {name for name in names if name == module or name.startswith(f"{module}.")}


@pytest.mark.parametrize("room", ROOMS_OF_DEFENCES)
def test_no_room_that_a_defence_may_use_imports_the_truth(room):
    assert modules(room)
    for file in modules(room):
        for secret in ("sanitize.attacks", "sanitize.red_team", "sanitize.tracking", "sanitize.known_poison"):
            assert not within(imported(file), secret), file


def test_only_the_red_team_and_the_evaluation_read_the_truth():
    root = Path(sanitize.__file__).parent
    readers = {
        file.relative_to(root).parts[0]
        for file in root.rglob("*.py")
        if within(imported(file), "sanitize.tracking.truth")
    }
    assert readers <= {"red_team", "evaluation", "known_poison.py"}  # the last hands it to the evaluation alone


def assert_tells_nothing(content: bytes, secrets: list[bytes], what: str) -> None:
    for secret in secrets:
        assert secret not in content, f"{what} holds {secret[:40]!r}"


def secrets_of(store: Store, uri: str, run_id: str, attack: str) -> list[bytes]:
    truth = read_truth(store, uri)
    words = [run_id, attack, EXPERIMENT, "poison", "trigger", truth.triggers[0].name, truth.triggers[0].sha256]
    listed = [word.encode() for word in words]
    if truth.poisoned is not None:
        listed += [truth.poisoned.numpy().tobytes(), truth.labels.numpy().tobytes()]
    return listed


def assert_nothing_leads_to_the_truth(store: Store, name: str, folder: Path, secrets: list[bytes]) -> None:
    """Neither files nor names, tags, parameters and descriptions around the version."""
    uri = f"models:/{name}/1"
    downloaded = store.download(store.resolve(uri), folder)
    files = [downloaded] if downloaded.is_file() else [path for path in downloaded.rglob("*") if path.is_file()]
    assert files
    for file in files:
        assert_tells_nothing(file.name.encode() + file.read_bytes(), secrets, file.name)
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                for entry in archive.namelist():
                    assert_tells_nothing(entry.encode() + archive.read(entry), secrets, f"{file.name}/{entry}")
    client = store.client
    version = client.get_model_version(name, "1")
    run = client.get_run(version.run_id)
    around = [version.description, version.source, version.tags, client.get_registered_model(name).description]
    around += [run.info.run_name, run.data.tags, run.data.params, run.inputs.to_dictionary()]
    assert_tells_nothing(repr(around).encode(), secrets, "the registry")
    assert client.get_experiment(run.info.experiment_id).name == "sanitize-intake"


def test_no_file_of_a_registered_data_set_tells_the_truth(store, poisoned, tmp_path):
    secrets = secrets_of(store, "models:/images/1", poisoned.truth_run, "ssl-backdoor")
    assert_nothing_leads_to_the_truth(store, "images", tmp_path / "copy", secrets)
    table = pq.ParquetFile(next((tmp_path / "copy").glob("*.parquet")))
    assert table.schema_arrow.names == ["image"]
    names = table.read().column("image").combine_chunks().field("path").to_pylist()
    truth = read_truth(store, "models:/images/1")
    marked = {str(name).rstrip("0123456789.png") for name, hit in zip(names, truth.poisoned, strict=True) if hit}
    plain = {str(name).rstrip("0123456789.png") for name, hit in zip(names, truth.poisoned, strict=True) if not hit}
    assert marked <= plain


@pytest.mark.slow
def test_no_file_of_a_registered_encoder_tells_the_truth(store, store_uri, tmp_path):
    team = RedTeam("badencoder", trainer=SimCLR(epochs=1, batch_size=64), tracking_uri=store_uri)
    planted = team.run(
        AttackRequest(data="digits#0:140", register="suspect", arch="small-cnn", normalization="half", image_size=32)
    )
    assert planted.established is None  # nothing to measure it on
    secrets = secrets_of(store, "models:/suspect/1", planted.truth_run, "badencoder")
    assert_nothing_leads_to_the_truth(store, "suspect", tmp_path / "copy", secrets)


def test_the_truth_is_found_by_the_version_and_holds_no_pickle(store, poisoned):
    truth = read_truth(store, "models:/images/1")
    assert truth.facts["seed"] == 3
    assert truth.facts["data"]["sha256"] == load_images("digits#0:420").sha256
    assert truth.triggers[0].sha256 == poisoned.triggers[0]["sha256"]
    run = store.client.get_run(poisoned.truth_run)
    assert store.client.get_experiment(run.info.experiment_id).name == EXPERIMENT
    assert run.data.tags[PLANTED_TAG] == "models:/images/1"
    root = Path(run.info.artifact_uri.removeprefix("file://"))
    assert {path.suffix for path in (root / "truth").rglob("*") if path.is_file()} == {".json", ".npz", ".png", ".yaml"}
    with np.load(io.BytesIO((root / "truth" / "truth.npz").read_bytes()), allow_pickle=False) as arrays:
        assert {name: str(array.dtype) for name, array in arrays.items()} == {"poisoned": "bool", "labels": "int64"}


@pytest.mark.parametrize("file", ["truth.json", "truth.npz", "triggers/0/trigger.yaml"])
def test_a_changed_record_is_refused(store, poisoned, file):
    run = store.client.get_run(poisoned.truth_run)
    path = Path(run.info.artifact_uri.removeprefix("file://")) / "truth" / file
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(TrackingError, match="changed after it was written"):
        read_truth(store, "models:/images/1")


def test_the_record_of_other_files_is_refused(store, poisoned):
    store.client.set_model_version_tag("images", "1", "sanitize.sha256", "0" * 64)
    with pytest.raises(TrackingError, match="other files"):
        read_truth(store, "models:/images/1")


def test_nothing_is_known_about_what_was_not_planted(store, store_uri, poisoned, tmp_path):
    from sanitize.intake import Knowledge, take_in

    np.savez(tmp_path / "images.npz", images=np.zeros((4, 8, 8, 3), np.uint8))
    take_in(tmp_path / "images.npz", "innocent", Knowledge(), tracking_uri=store_uri)
    with pytest.raises(TrackingError, match="did not register it"):
        read_truth(store, "models:/innocent/1")


def test_the_same_seed_plants_the_same_and_another_seed_something_else(store, store_uri, poisoned):
    for seed in (3, 4):
        RedTeam("ssl-backdoor", seed=seed, tracking_uri=store_uri).run(
            AttackRequest(data="digits#0:420", register="images")
        )
    first, same, other = (read_truth(store, f"models:/images/{number}") for number in (1, 2, 3))
    assert torch.equal(first.poisoned, same.poisoned)
    assert first.facts["suspect"] == same.facts["suspect"]
    assert not torch.equal(first.poisoned, other.poisoned)
    tags = [run.data.tags for run in MlflowClient(store_uri).search_runs(_experiments(store_uri))]
    assert len({tag[DIGEST_TAG] for tag in tags if DIGEST_TAG in tag}) == 2


def _experiments(store_uri: str) -> list[str]:
    return [experiment.experiment_id for experiment in MlflowClient(store_uri).search_experiments()]


def test_a_rehearsal_refuses_what_the_training_would_and_trains_nothing():
    network = untrained("small-cnn", kind="encoder", image_size=32, normalization="half")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    few, enough = load_images("digits#0:20"), load_images("digits#0:70")
    with pytest.raises(DataError, match="batch of 64"):
        rehearse(lambda engine: SimCLR(epochs=1, batch_size=64).train(network, few, engine), seed=0)
    assert rehearse(lambda engine: SimCLR(epochs=1, batch_size=64).train(network, enough, engine), seed=0) is None
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
