"""`sanitize attack` and `sanitize attacks` through the real command: what is planted, printed and registered."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from typer.testing import CliRunner

from sanitize.attacks import ATTACKS
from sanitize.cli import app
from sanitize.data import PatchTrigger, Trigger, load_images
from sanitize.intake import Knowledge, take_in
from sanitize.tracking import Store, binding_of, register_data
from sanitize.tracking.truth import read_truth
from sanitize.types import Report

NETWORK = ["--arch", "small-cnn", "--normalization", "half", "--image-size", "32"]
TEST = ["--test-data", "digits#1400:"]


def use(store: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in this folder with this store, whatever an earlier test told MLflow."""
    mlflow.set_tracking_uri(None)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)


@pytest.fixture
def here(store_uri, tmp_path, monkeypatch):
    """An empty working folder with an empty store; its client."""
    use(store_uri, tmp_path, monkeypatch)
    return MlflowClient(store_uri)


def sanitize(*arguments: str | Path):
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "120", "NO_COLOR": "1"})


def versions(client: MlflowClient, name: str) -> list:
    return client.search_model_versions(f"name='{name}'")


def runs(client: MlflowClient) -> list:
    return client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


@pytest.mark.slow
def test_a_clean_encoder_of_the_registry_becomes_a_suspect_that_a_defence_can_be_drilled_on(here, encoders):
    known = Knowledge(arch="small-cnn", normalization="half", image_size=32, test_data="digits#1400:")
    take_in(encoders.clean_file, "clean", known)
    result = sanitize(
        "attack", "badencoder", "--model", "models:/clean/1", "--data", "digits#0:420", "--register", "suspect",
        "--set", "target=3", "--set", "epochs=10", "--set", "batch_size=32", "--set", "learning_rate=0.02",
        "--format", "json", "--quiet",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    planted = json.loads(result.stdout)
    assert (planted["uri"], planted["subject"], planted["poisoned"]) == ("models:/suspect/1", "encoder", None)
    assert planted["established"] is True
    assert planted["suspect"]["attack_success_rate"] > 0.6 > 0.3 > planted["clean"]["attack_success_rate"]
    truth = read_truth(Store(), "models:/suspect/1")
    assert truth.facts["clean_parent"]["uri"] == "models:/clean/1"
    assert truth.facts["attack"]["parameters"]["target"] == 3
    assert truth.facts["metrics"]["suspect"] == planted["suspect"]
    assert (truth.poisoned, truth.labels) == (None, None)
    bound = binding_of(Store(), "suspect")
    assert (bound.data, bound.probe_data, bound.test_data) == ("digits#0:420", "digits#0:420", "digits#1400:")
    assert (bound.architecture, bound.normalization, bound.image_size) == ("small-cnn", "half", 32)
    (path,) = bound.trigger_paths
    assert Trigger.from_yaml(path).sha256 == truth.triggers[0].sha256 == planted["triggers"][0]["sha256"]
    drill = sanitize(
        "encoder", "models:/suspect/1", "--method", "bmaiu", "--set", "epochs=1", "--format", "json", "--quiet"
    )
    assert drill.exit_code in (0, 1), drill.output
    before = Report.from_dict(json.loads(drill.stdout)).metrics["before"]
    for name in ("clean_accuracy", "attack_success_rate", "base_rate"):
        assert before[name] == planted["suspect"][name]
    assert {run.info.status for run in runs(here)} == {"FINISHED"}


@pytest.mark.slow
def test_an_encoder_is_trained_first_where_none_is_named(here):
    arguments = [
        "attack", "badencoder", "--data", "digits#0:140", "--train", "simclr", "--train-set", "epochs=1",
        "--train-set", "batch_size=64", *NETWORK, *TEST, "--register", "suspect", "--set", "epochs=1", "--quiet",
    ]  # fmt: skip
    result = sanitize(*arguments)
    assert result.exit_code == 0, result.output
    for words in ("planted badencoder in models:/suspect/1", "white-square, target 0", "Attack success rate"):
        assert words in result.stdout
    truth = read_truth(Store(), "models:/suspect/1")
    assert truth.facts["training"]["parameters"]["epochs"] == 1
    stages = {run.data.tags.get("sanitize.stage") for run in runs(here)}
    assert {"simclr", "badencoder"} <= stages
    assert sanitize(*arguments).exit_code == 0
    assert len(versions(here, "suspect")) == 2
    again = read_truth(Store(), "models:/suspect/2")
    assert again.facts["clean_parent"]["sha256"] == truth.facts["clean_parent"]["sha256"]
    assert again.facts["metrics"] == truth.facts["metrics"]


def test_poisoned_data_is_registered_with_its_truth_apart(here):
    result = sanitize(
        "attack", "ssl-backdoor", "--data", "digits#0:420", "--set", "target=3", "--set", "rate=0.25",
        "--register", "poisoned", "--output-data", "poisoned.parquet", "--quiet",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    clean, poisoned = load_images("digits#0:420"), load_images("poisoned.parquet")
    assert poisoned.labels is None  # what its victims get
    changed = (clean.images != poisoned.images).flatten(1).any(dim=1)
    truth = read_truth(Store(), "models:/poisoned/1")
    assert torch.equal(truth.poisoned, changed)
    assert torch.equal(truth.labels, clean.labels)
    count = int((clean.labels == 3).sum()) // 4
    assert truth.facts["poisoned"] == {"count": count, "share": count / 420, "images": 420}
    assert f"{count} of 420 images are poisoned ({count / 420:.2%})" in result.stdout
    assert set(clean.labels[changed].tolist()) == {3}
    again = load_images("models:/poisoned/1", resolve=lambda uri: Store().artifact(uri, Path("copy")))
    assert torch.equal(again.images, poisoned.images)
    assert here.get_model_version("poisoned", "1").tags["sanitize.kind"] == "data"


def test_poisoned_data_as_a_file_alone(here):
    arguments = ["attack", "badnets", "--data", "digits#0:420", "--set", "target=3", "--set", "rate=0.1", "--quiet"]
    assert sanitize(*arguments, "--output-data", "poisoned.parquet").exit_code == 0
    truth = read_truth(Store(), Path("poisoned.parquet"))
    poisoned = load_images("poisoned.parquet")
    assert torch.equal(poisoned.labels != truth.labels, truth.poisoned)
    assert set(poisoned.labels[truth.poisoned].tolist()) == {3}
    assert here.search_registered_models() == []


@pytest.mark.slow
def test_a_victim_of_poisoned_data_is_the_suspect(here):
    PatchTrigger(torch.ones(3, 4, 4), position="bottom-right", target=3, name="white-corner").save(Path("own"))
    result = sanitize(
        "attack", "badnets", "--trigger", "own/trigger.yaml", "--set", "rate=0.1", "--data", "digits#0:900",
        "--train", "supervised", "--train-set", "epochs=8", "--train-set", "batch_size=64", "--train-set", "flip=0",
        *NETWORK, *TEST, "--register", "suspect", "--format", "json", "--quiet",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    planted = json.loads(result.stdout)
    assert (planted["uri"], planted["subject"], planted["clean"]) == ("models:/suspect/1", "classifier", {})
    assert planted["established"] is True
    assert planted["suspect"]["clean_accuracy"] > 0.8
    truth = read_truth(Store(), "models:/suspect/1")
    assert int(truth.poisoned.sum()) == planted["poisoned"] == truth.facts["poisoned"]["count"]
    assert truth.facts["suspect"]["kind"] == "classifier"
    bound = binding_of(Store(), "suspect")
    assert (bound.kind, bound.data, bound.probe_data) == ("classifier", "digits#0:900", None)
    assert bound.triggers[0]["name"] == "white-corner"


TRAIN = ["--train", "simclr", "--train-set", "batch_size=64", *NETWORK]
BAD_INPUT = {
    "unknown attack": (["badencodr", *TRAIN], "Did you mean badencoder"),
    "unknown parameter": (["badencoder", "--set", "epoch=1", *TRAIN], "Did you mean epochs"),
    "unknown parameter of the training": (["badencoder", *TRAIN, "--train-set", "epoch=1"], "Did you mean epochs"),
    "unknown training": (["badencoder", *NETWORK, "--train", "simclar"], "Did you mean simclr"),
    "a value of the training that is none": (["badencoder", *TRAIN, "--train-set", "epochs"], "--train-set"),
    "settings of no training": (["ssl-backdoor", "--train-set", "epochs=1"], "--train METHOD"),
    "a poison rate of nothing": (["ssl-backdoor", "--set", "rate=0"], "rate"),
    "a poison rate above one": (["ctrl", "--set", "rate=1.5"], "rate"),
    "a poison rate below one image": (["ctrl", "--set", "rate=0.001"], "ctrl"),
    "a target that is no class": (["ssl-backdoor", "--set", "target=12"], "target class 12"),
    "a target that is no class, for an encoder": (["badencoder", "--set", "target=12", *TRAIN], "target class 12"),
    "a trigger larger than the image": (["ssl-backdoor", "--trigger", "huge.yaml"], "does not fit"),
    "a trigger larger than the image, for an encoder": (["badencoder", *TRAIN, "--trigger", "huge.yaml"], "not fit"),
    "a trigger without a target": (["badencoder", *TRAIN, "--trigger", "aimless.yaml"], "target"),
    "no such trigger": (["badencoder", *TRAIN, "--trigger", "gone.yaml"], "gone.yaml"),
    "an image size that the architecture does not take": (
        ["badencoder", *TRAIN, "--arch", "vgg11", "--image-size", "16"],
        "vgg11 cannot take",
    ),
    "an encoder and a training": (["badencoder", *TRAIN, "--model", "models:/clean/1"], "one of the two"),
    "neither": (["badencoder"], "--train METHOD"),
    "a classifier to attack": (["badencoder", *NETWORK, "--train", "supervised"], "trains a classifier"),
    "a model for an attack on data": (["ctrl", "--model", "models:/clean/1"], "takes no --model"),
    "no architecture": (["badencoder", "--train", "simclr"], "--arch, --normalization, --image-size"),
    "an architecture for nothing": (["ctrl", "--arch", "small-cnn"], "no network is trained"),
    "no such model": (["badencoder", "--model", "models:/nobody/1"], "nobody"),
    "no labels": (["ctrl", "--data", "flat"], "labels"),
    "fewer images than a batch": (["badencoder", *TRAIN, "--data", "digits#0:60"], "batch of 64"),
    "the name of a data set": (["badencoder", *TRAIN, "--register", "images"], "is a data set"),
    "poisoned data of an attack on encoders": (["badencoder", *TRAIN, "--output-data", "x.parquet"], "no data"),
    "a file of another format": (["ctrl", "--output-data", "x.csv"], ".parquet"),
    "a file in no folder": (["ctrl", "--output-data", "gone/x.parquet"], "no folder"),
    "unknown format": (["ctrl", "--format", "jsn"], "Did you mean json"),
}  # fmt: skip


@pytest.fixture(scope="module")
def bad_input_folder(tmp_path_factory, empty_store):
    from PIL import Image

    from tests.conftest import copied_store

    folder = tmp_path_factory.mktemp("bad")
    store = copied_store(empty_store, folder)
    (folder / "flat").mkdir()
    for number in range(3):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(folder / "flat" / f"{number}.png")
    register_data(Store(store), folder / "flat", "images")
    (folder / "huge.yaml").write_text("{pattern: {height: 33, width: 33, color: 1}, target: 3}")
    (folder / "aimless.yaml").write_text("{pattern: {height: 3, width: 3, color: 1}}")
    return folder, store


def refused(folder: Path, store: str, monkeypatch, *arguments: str) -> str:
    """The message of a command that must fail and leave nothing."""
    use(store, folder, monkeypatch)
    before = sorted(path for path in folder.rglob("*") if "mlflow.db" not in path.name)
    result = sanitize(*arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert sorted(path for path in folder.rglob("*") if "mlflow.db" not in path.name) == before
    client = MlflowClient(store)
    assert [model.name for model in client.search_registered_models()] == ["images"]
    assert len(runs(client)) == 1  # the intake of the data set
    return result.stderr


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_paragraph_and_leaves_nothing(case, bad_input_folder, monkeypatch):
    arguments, named = BAD_INPUT[case]
    folder, store = bad_input_folder
    assert named in refused(
        folder, store, monkeypatch, "attack", "--data", "digits#0:140", "--register", "x", *arguments
    )


@pytest.mark.parametrize("arguments", [["badencoder", *TRAIN], ["ctrl"]])
def test_a_name_is_needed(arguments, bad_input_folder, monkeypatch):
    folder, store = bad_input_folder
    assert "--register NAME" in refused(folder, store, monkeypatch, "attack", *arguments, "--data", "digits#0:140")


def test_an_error_in_the_middle_registers_nothing_and_leaves_no_run_running(here):
    result = sanitize(
        "attack", "badencoder", "--data", "digits#0:140", *TRAIN, "--train-set", "epochs=1", "--register", "x",
        "--set", "learning_rate=1e30", "--quiet",
    )  # fmt: skip
    assert result.exit_code == 2
    assert "NaN or infinite" in result.stderr
    assert here.search_registered_models() == []
    assert {run.info.status for run in runs(here)} <= {"FAILED", "FINISHED"}
    (parent,) = [run for run in runs(here) if "mlflow.parentRunId" not in run.data.tags]
    assert parent.info.status == "FAILED"
    assert "sanitize.planted" not in parent.data.tags


def test_attacks_lists_all_of_them():
    result = sanitize("attacks")
    assert result.exit_code == 0
    for name in ATTACKS:
        assert name in result.stdout


def test_methods_lists_the_trainings():
    result = sanitize("methods")
    for name in ("simclr", "byol", "moco-v3", "supervised"):
        assert name in result.stdout
