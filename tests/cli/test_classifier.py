"""`sanitize classifier` through the real command: a poisoned checkpoint comes in, a version with a verdict goes out."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from mlflow import MlflowClient
from typer.testing import CliRunner

import sanitize as package
from sanitize import Sanitizer
from sanitize.cli import app
from sanitize.data import load_images
from sanitize.errors import ConfigError
from sanitize.inputs import Request, gather
from sanitize.intake import Knowledge, take_in
from sanitize.tracking import Store
from tests.cli.test_commands import BIND, running, sanitize, versions
from tests.conftest import copied_store

pytestmark = pytest.mark.slow


def test_a_poisoned_checkpoint_goes_through(store_uri, tmp_path, classifiers):
    taken = sanitize(
        "intake", classifiers.backdoored_file, "--name", "suspect", "--kind", "classifier", *BIND,
        "--data", "digits#0:420", "--test-data", "digits#1400:", "--trigger", classifiers.trigger_file,
        folder=tmp_path, store=store_uri,
    )  # fmt: skip
    assert taken.returncode == 0, taken.stderr
    assert taken.stdout == "models:/suspect/1\n"
    result = sanitize(
        "classifier", "models:/suspect/1", "--method", "fine-tune", "--set", "epochs=2", "--set", "flip=0.0",
        "--set", "crop_padding=2", "--format", "json", "--workdir", "job", folder=tmp_path, store=store_uri,
    )  # fmt: skip
    assert result.returncode == 1, result.stderr  # two epochs leave the backdoor
    report = json.loads(result.stdout)
    assert report["verdict"] == "fail"
    assert "attack success rate" in report["reasons"][0]
    assert report["subject"]["kind"] == "classifier"
    assert report["subject"]["classes"] == 10
    assert "feature_size" not in report["subject"]
    assert report["data"]["classes"] == 10
    assert report["data"]["probe"] is None
    assert report["outputs"]["onnx_uri"].endswith("/classifier.onnx")
    assert report["outputs"]["command"].startswith("sanitize classifier models:/suspect/1 --method fine-tune")
    measured = {
        "clean_accuracy", "clean_accuracy_nontarget", "attack_success_rate", "attack_success_rate_all", "base_rate",
        "poison_accuracy", "clean_similarity",
    }  # fmt: skip
    assert report["metrics"]["before"].keys() == report["metrics"]["after"].keys() == measured
    assert json.loads((tmp_path / "job" / "report.json").read_text()) == report
    assert sorted(path.name for path in (tmp_path / "job").iterdir()) == [
        ".lock", "classifier.onnx", "job.json", "model.safetensors", "report.html", "report.json", "sanitize.json",
    ]  # fmt: skip
    test = load_images("digits#1400:")
    pixels = test.images.float() / 255
    session = onnxruntime.InferenceSession(tmp_path / "job" / "classifier.onnx", providers=["CPUExecutionProvider"])
    logits = session.run(["logits"], {"images": pixels.numpy()})[0]
    assert logits.shape == (len(test), 10)
    accuracy = float((torch.from_numpy(logits).argmax(dim=1) == test.labels).float().mean())
    assert accuracy == pytest.approx(report["metrics"]["after"]["clean_accuracy"], abs=0.005)
    loaded = package.load("models:/suspect/2", tracking_uri=store_uri)
    assert isinstance(loaded, package.Classifier)
    with torch.inference_mode():
        assert np.abs(loaded(pixels).numpy() - logits).max() <= 1e-3
    client = MlflowClient(store_uri)
    tags = client.get_model_version("suspect", "2").tags
    assert tags["sanitize.verdict"] == "fail"
    assert tags["sanitize.method"] == "fine-tune"
    assert tags["sanitize.onnx_file"] == "classifier.onnx"
    assert tags["sanitize.parent"] == "models:/suspect/1"
    assert "sanitized" not in client.get_registered_model("suspect").aliases
    verified = sanitize("verify", "models:/suspect/2", folder=tmp_path, store=store_uri)
    assert verified.returncode == 0, verified.stdout
    assert running(store_uri) == []


@pytest.fixture(scope="module")
def shelf(tmp_path_factory, empty_store, classifiers, encoders):
    """A store with a bound classifier and a bound encoder, and data that does not fit them; no test may change it."""
    folder = tmp_path_factory.mktemp("shelf")
    store = copied_store(empty_store, folder)
    known = {"data": "digits#0:420", "arch": "small-cnn", "normalization": "half", "image_size": 32}
    take_in(classifiers.backdoored_file, "suspect", Knowledge(kind="classifier", **known), tracking_uri=store)
    take_in(encoders.backdoored_file, "encoder", Knowledge(**known), tracking_uri=store)
    take_in(classifiers.clean_file, "unbound", Knowledge(kind="classifier"), tracking_uri=store)
    data = load_images("digits#0:64")
    images, labels = data.images.permute(0, 2, 3, 1).numpy(), data.labels.numpy()
    np.savez(folder / "high.npz", images=images, labels=labels + 1)
    np.savez(folder / "same.npz", images=images, labels=np.full(64, 4))
    np.savez(folder / "flat.npz", images=images)
    (folder / "rows.txt").write_text("3\n420\n")
    return folder, store


BAD_INPUT = {
    "labels out of range": (["--data", "{}/high.npz"], "1 to 10"),
    "one class": (["--data", "{}/same.npz"], "at least two classes"),
    "no labels": (["--data", "{}/flat.npz"], "needs labels"),
    "test labels out of range": (["--test-data", "{}/high.npz"], "10 logits"),
    "no such suspected file": (["--suspected", "{}/gone.txt"], "gone.txt"),
    "suspected row out of range": (["--suspected", "{}/rows.txt"], "row 420"),
    "a method for encoders": (["--method", "bmaiu"], "works on encoders"),
}


def invoke(*arguments: str, store: str, folder) -> tuple[int, str, str]:
    result = CliRunner().invoke(
        app, ["classifier", *arguments, "--tracking-uri", store, "--device", "cpu", "--workdir", str(folder / "job")]
    )
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_paragraph_and_leaves_nothing(case, shelf, tmp_path):
    folder, store = shelf
    options, named = BAD_INPUT[case]
    arguments = ["models:/suspect/1", *([] if "--method" in options else ["--method", "fine-tune"])]
    code, out, error = invoke(*arguments, *(option.format(folder) for option in options), store=store, folder=tmp_path)
    assert (code, out) == (2, "")
    assert error.startswith("error: ")
    assert len(error.strip().splitlines()) == 1
    assert named in error
    assert versions(store) == ["1"]
    assert running(store) == []


def test_an_encoder_is_not_taken_for_a_classifier(shelf, tmp_path):
    _, store = shelf
    code, _, error = invoke("models:/encoder/1", "--method", "fine-tune", store=store, folder=tmp_path)
    assert code == 2
    assert "bound as encoder" in error


def test_the_kind_of_an_unbound_model_has_to_be_said(shelf, tmp_path):
    _, store = shelf
    sanitizer = Sanitizer(defense="fine-tune", device="cpu", tracking_uri=store, workdir=tmp_path / "job")
    options = {"data": "digits#0:64", "arch": "small-cnn", "normalization": "half", "image_size": 32}
    with pytest.raises(ConfigError, match="an encoder or a classifier"):
        sanitizer.run("models:/unbound/1", **options)
    with pytest.raises(ConfigError, match="--suspected"):
        sanitizer.run("models:/unbound/1", kind="classifier", suspected="rows.txt", **options | {"data": None})


def test_suspected_rows_reach_the_defence_and_are_part_of_the_job(shelf, tmp_path):
    folder, store = shelf
    (folder / "guess.txt").write_text("3\n7\n")
    request = Request(model="models:/suspect/1", kind="classifier", suspected=folder / "guess.txt")
    inputs = gather(request, Store(store), tmp_path / "with")
    assert torch.nonzero(inputs.data.suspected).flatten().tolist() == [3, 7]
    assert ("--suspected", str(folder / "guess.txt")) in inputs.options
    without = gather(replace(request, suspected=None), Store(store), tmp_path / "without")
    assert without.data.suspected is None
    assert without.fingerprint != inputs.fingerprint
