"""`sanitize train` through the real command: what it registers and binds, its verdicts, bad input, kill and resume."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from typer.testing import CliRunner

from sanitize.cli import app
from sanitize.data import PatchTrigger, load_images
from sanitize.data.writing import write_parquet
from sanitize.evaluation import Policy
from sanitize.tracking import Store, binding_of, register_data
from sanitize.training_job import judge_training
from sanitize.types import Report, Verdict

NETWORK = ["--arch", "small-cnn", "--normalization", "half", "--image-size", "32"]
SIMCLR = ["--method", "simclr", "--set", "epochs=2", "--set", "batch_size=64", "--set", "flip=0"]
SUPERVISED = ["--method", "supervised", "--set", "epochs=6", "--set", "batch_size=64", "--set", "flip=0"]


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


def sanitize(*arguments: str):
    return CliRunner().invoke(app, [*arguments], env={"COLUMNS": "120", "NO_COLOR": "1"})


def runs(client: MlflowClient) -> list:
    return client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


@pytest.mark.slow
def test_an_encoder_is_registered_bound_and_can_be_examined_at_once(here):
    result = sanitize(
        "train", "digits#0:280", *SIMCLR, *NETWORK, "--test-data", "digits#1400:", "--register", "mine", "--quiet",
        "--format", "json", "--output", "out.md",
    )  # fmt: skip
    assert result.exit_code == 3, result.output
    report = Report.from_dict(json.loads(result.stdout))
    assert report.verdict is Verdict.INCONCLUSIVE
    assert "--trigger" in report.reasons[0]
    assert report.subject["uri"] == "digits#0:280"
    assert report.subject["sha256"] == load_images("digits#0:280").without_labels().sha256
    assert report.subject["trained"]["kind"] == "encoder"
    assert report.metrics["before"] == {}
    assert report.metrics["after"]["clean_accuracy"] > 0.3
    assert report.metrics["after"]["attack_success_rate"] is None
    assert "Trained model" in Path("out.md").read_text()
    version = here.get_model_version("mine", "1")
    assert version.tags["sanitize.method"] == "simclr"
    assert version.tags["sanitize.parent"] == "digits#0:280"
    assert version.tags["sanitize.run_id"] == report.outputs["run_id"]
    assert "Trained on digits" in version.description
    assert "sanitized" not in here.get_registered_model("mine").aliases
    bound = binding_of(Store(), "mine")
    assert (bound.data, bound.probe_data, bound.test_data) == ("digits#0:280", "digits#0:280", "digits#1400:")
    assert (bound.architecture, bound.normalization, bound.image_size, bound.kind) == (
        "small-cnn", "half", 32, "encoder",
    )  # fmt: skip
    assert {run.info.status for run in runs(here)} == {"FINISHED"}
    assert {dataset.tags[0].value for dataset in here.get_run(version.run_id).inputs.dataset_inputs} == {
        "train", "probe", "test",
    }  # fmt: skip
    assert sanitize("verify", "models:/mine/1").exit_code == 0
    examined = sanitize("encoder", "models:/mine/1", "--method", "bmaiu", "--set", "epochs=1", "--quiet")
    assert examined.exit_code in (1, 3), examined.output
    assert here.get_model_version("mine", "2").tags["sanitize.parent"] == "models:/mine/1"
    again = sanitize(
        "train", "digits#0:280", *SIMCLR, *NETWORK, "--test-data", "digits#1400:", "--register", "mine", "--quiet",
        "--format", "json", "--resume",
    )  # fmt: skip
    assert again.exit_code == 3
    assert json.loads(again.stdout) == json.loads(result.stdout)
    assert len(here.search_model_versions("name='mine'")) == 2


@pytest.mark.slow
def test_a_classifier_that_a_known_trigger_leaves_alone_passes(here):
    PatchTrigger(torch.ones(3, 3, 3), position=(0, 0), target=1, name="corner").save(Path("trigger"))
    result = sanitize(
        "train", "digits#0:700", *SUPERVISED, *NETWORK, "--test-data", "digits#1400:", "--register", "digits",
        "--trigger", "trigger/trigger.yaml", "--quiet", "--format", "json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = Report.from_dict(json.loads(result.stdout))
    assert report.verdict is Verdict.PASS
    assert report.subject["trained"] | {"output_size": 10, "kind": "classifier"} == report.subject["trained"]
    assert report.metrics["after"]["attack_success_rate"] <= 0.1
    assert here.get_model_version_by_alias("digits", "sanitized").version in (1, "1")
    assert [trigger["name"] for trigger in binding_of(Store(), "digits").triggers] == ["corner"]


def test_the_verdict_needs_a_trigger_that_was_tried_and_a_network_that_learned():
    test = load_images("digits#1400:")
    good = {"clean_accuracy": 0.9, "attack_success_rate": 0.05}
    assert judge_training(good, test, Policy())[0] is Verdict.PASS
    assert judge_training(good | {"attack_success_rate": 0.11}, test, Policy())[0] is Verdict.FAIL
    assert judge_training(good | {"clean_accuracy": 0.10}, test, Policy())[0] is Verdict.FAIL
    verdict, reasons = judge_training(good | {"attack_success_rate": None}, test, Policy())
    assert (verdict, "--trigger" in reasons[0]) == (Verdict.INCONCLUSIVE, True)
    verdict, reasons = judge_training({}, None, Policy())
    assert (verdict, "--test-data" in reasons[0]) == (Verdict.INCONCLUSIVE, True)


BAD_INPUT = {
    "unknown method": (["digits#0:280", "--method", "simclar", *NETWORK], "Did you mean simclr"),
    "no method": (["digits#0:280", *NETWORK], "--method"),
    "unknown parameter": (["digits#0:280", "--method", "simclr", "--set", "epoch=1", *NETWORK], "Did you mean epochs"),
    "a recipe for another method": (
        ["digits#0:280", "--method", "simclr", "--recipe", "bmaiu-cifar10", *NETWORK],
        "is for bmaiu",
    ),
    "unknown architecture": (["digits#0:280", *SIMCLR, *NETWORK, "--arch", "small-cn"], "Did you mean small-cnn"),
    "an image size that the architecture does not take": (
        ["digits#0:280", *SIMCLR, *NETWORK, "--arch", "vgg11", "--image-size", "16"],
        "vgg11 cannot take",
    ),
    "unknown normalization": (["digits#0:280", *SIMCLR, *NETWORK, "--normalization", "cifar"], "cifar10"),
    "no such data": (["gone.parquet", *SIMCLR, *NETWORK], "gone.parquet"),
    "fewer images than a batch": (["digits#0:60", *SIMCLR, *NETWORK], "batch of 64"),
    "no labels for a classifier": (["flat", *SUPERVISED, *NETWORK], "labels"),
    "a trigger without test data": (["digits#0:280", *SIMCLR, *NETWORK, "--trigger", "big.yaml"], "--test-data"),
    "a trigger larger than the image": (
        ["digits#0:280", *SIMCLR, *NETWORK, "--trigger", "huge.yaml", "--test-data", "digits#1400:"],
        "does not fit",
    ),
    "a target that is no class": (
        ["digits#0:280", *SIMCLR, *NETWORK, "--trigger", "big.yaml", "--test-data", "digits#1400:"],
        "target 12",
    ),
    "test data without labels": (["digits#0:280", *SIMCLR, *NETWORK, "--test-data", "flat"], "labels"),
    "the name of a data set": (["digits#0:280", *SIMCLR, *NETWORK, "--register", "images"], "is a data set"),
    "a name that cannot be one": (["digits#0:280", *SIMCLR, *NETWORK, "--register", "a/b"], "cannot be the name"),
    "nothing to resume": (["digits#0:280", *SIMCLR, *NETWORK, "--resume"], "nothing to resume"),
    "unknown format": (["digits#0:280", *SIMCLR, *NETWORK, "--format", "jsn"], "Did you mean json"),
    "unknown device": (["digits#0:280", *SIMCLR, *NETWORK, "--device", "abacus"], "abacus"),
}


@pytest.fixture(scope="module")
def bad_input_folder(tmp_path_factory, empty_store):
    from PIL import Image

    from tests.conftest import copied_store

    folder = tmp_path_factory.mktemp("bad")
    store = copied_store(empty_store, folder)
    (folder / "flat").mkdir()
    for number in range(80):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(folder / "flat" / f"{number}.png")
    register_data(Store(store), folder / "flat", "images")
    for name, size in (("big", 4), ("huge", 33)):
        values = f"{{pattern: {{height: {size}, width: {size}, color: 1}}, target: 12}}"
        (folder / f"{name}.yaml").write_text(values)
    return folder, store


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_paragraph_and_leaves_nothing(case, bad_input_folder, monkeypatch):
    folder, store = bad_input_folder
    use(store, folder, monkeypatch)
    arguments, named = BAD_INPUT[case]
    before = sorted(path for path in folder.rglob("*") if "mlflow.db" not in path.name)
    result = sanitize("train", "--register", "x", *arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert named in result.stderr
    assert sorted(path for path in folder.rglob("*") if "mlflow.db" not in path.name) == before
    client = MlflowClient(store)
    assert client.search_model_versions("name='x'") == []
    assert len(runs(client)) == 1  # the intake of the data set


def test_an_error_in_the_middle_registers_nothing_and_leaves_no_run_running(here):
    arguments = ["digits#0:140", *SUPERVISED, "--set", "learning_rate=1e30", *NETWORK, "--register", "x", "--quiet"]
    result = sanitize("train", *arguments)
    assert result.exit_code == 2
    assert "NaN or infinite" in result.stderr
    assert here.search_model_versions("name='x'") == []
    assert {run.info.status for run in runs(here)} == {"FAILED"}


def start(store: str, workdir: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable, "-m", "sanitize", "train", "digits#0:140", *SIMCLR, "--set", "epochs=6", *NETWORK,
            "--register", "mine", "--quiet", "--format", "json", "--tracking-uri", store, "--workdir", str(workdir),
            *options,
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_images_that_may_not_be_in_memory_make_the_same_network(here):
    write_parquet(load_images("digits#0:140"), Path("mine.parquet"))
    made = []
    for memory in ("4", "0"):
        arguments = ["mine.parquet", *SIMCLR, *NETWORK, "--test-data", "digits#1400:1500", "--register", "mine"]
        result = sanitize(
            "train", *arguments, "--memory", memory, "--workdir", f"in-{memory}", "--quiet", "--format", "json"
        )
        assert result.exit_code == 3, result.output
        made.append((Path(f"in-{memory}") / "model.safetensors").read_bytes())
        assert ("--memory 0.0" in json.loads(result.stdout)["outputs"]["command"]) == (memory == "0")
        assert not list(Path(f"in-{memory}").rglob("*.tensor"))
    assert made[0] == made[1]


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_bits(here, store_uri, tmp_path):
    def digest(workdir: Path) -> str:
        return hashlib.sha256((workdir / "model.safetensors").read_bytes()).hexdigest()

    arguments = ["train", "digits#0:140", *SIMCLR, "--set", "epochs=6", *NETWORK, "--register", "mine", "--quiet"]
    assert sanitize(*arguments, "--workdir", "whole").exit_code == 3
    killed = start(store_uri, tmp_path / "killed")
    while not (tmp_path / "killed" / "checkpoints" / "simclr.ckpt").exists():
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.005)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert len(here.search_model_versions("name='mine'")) == 1
    resumed = sanitize(*arguments, "--workdir", "killed", "--resume")
    assert resumed.exit_code == 3, resumed.output
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")
    assert len(here.search_model_versions("name='mine'")) == 2
    assert {run.info.status for run in runs(here)} == {"FINISHED"}
