"""The Python interface on models that a stock MLflow script logged; failures leave nothing half-made."""

from __future__ import annotations

import json
import subprocess
import sys

import mlflow
import numpy as np
import pytest
import torch
import torchvision
from mlflow import MlflowClient

import sanitize
from sanitize import BMAIU, Sanitizer
from sanitize.errors import ConfigError, TrainingError, WorkdirError
from sanitize.intake import Knowledge, bind_knowledge, take_in

KNOWN = Knowledge(data="digits#0:64", arch="resnet18", normalization="imagenet", image_size=32)


@pytest.fixture
def stock_model(store_uri, tmp_path):
    """models:/stock/1: torchvision's ResNet-18, logged the way MLflow does by default (pt2)."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None, num_classes=10).eval()
    mlflow.set_tracking_uri(store_uri)
    try:
        experiment = MlflowClient(store_uri).create_experiment("stock", artifact_location=(tmp_path / "stock").as_uri())
        with mlflow.start_run(experiment_id=experiment):
            mlflow.pytorch.log_model(
                model,
                name="model",
                registered_model_name="stock",
                input_example=np.zeros((2, 3, 32, 32), np.float32),
                pip_requirements=["torch"],
            )
    finally:
        mlflow.set_tracking_uri(None)
    bind_knowledge("models:/stock", KNOWN, tracking_uri=store_uri)
    return store_uri


@pytest.mark.slow
def test_a_stock_model_goes_through_and_comes_back(stock_model, tmp_path):
    report = Sanitizer(
        defense=BMAIU(max_steps=1), device="cpu", tracking_uri=stock_model, workdir=tmp_path / "job"
    ).run("models:/stock/1")
    assert report.verdict == "inconclusive"
    assert report.subject["format"] == "pt2"
    assert report.subject["dropped"] == ["fc.bias", "fc.weight"]
    assert report.model_uri == "models:/stock/2"
    assert report.metrics["after"]["attack_success_rate"] is None
    assert "attack_success_rate" in report.unmeasured
    stored = json.loads((tmp_path / "job" / "report.json").read_text())
    assert stored == report.to_dict()

    encoder = sanitize.load("models:/stock/2", tracking_uri=stock_model)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = encoder(images).numpy()
    np.save(tmp_path / "images.npy", images.numpy())
    script = (
        "import sys, numpy, onnxruntime as ort;"
        "session = ort.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider']);"
        "numpy.save(sys.argv[3], session.run(None, {'images': numpy.load(sys.argv[2])})[0]);"
        "assert not any(name.split('.')[0] == 'sanitize' for name in sys.modules)"
    )
    files = [tmp_path / "job" / "encoder.onnx", tmp_path / "images.npy", tmp_path / "features.npy"]
    subprocess.run([sys.executable, "-I", "-c", script, *map(str, files)], check=True, timeout=120)
    assert np.abs(np.load(files[2]) - expected).max() <= 1e-4

    client = MlflowClient(stock_model)
    run = client.get_run(report.outputs["run_id"])
    assert run.info.status == "FINISHED"
    assert {item.dataset.name for item in run.inputs.dataset_inputs} == {"digits#0:64"}
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"report.html", "report.json", "recipe.yaml", "environment.json", "encoder.onnx", "figures"} <= artifacts
    children = client.search_runs([run.info.experiment_id], f"tags.mlflow.parentRunId = '{run.info.run_id}'")
    names = {child.info.run_name for child in children}
    assert names == {"evaluate-before", "implant", "unlearn", "evaluate-after", "export"}


def small_suspect(store_uri, encoders) -> None:
    known = Knowledge(data="digits#0:64", arch="small-cnn", normalization="half", image_size=32)
    take_in(encoders.backdoored_file, "suspect", known, tracking_uri=store_uri)


@pytest.mark.slow
def test_a_failure_in_the_middle_leaves_a_failed_run_and_no_version(store_uri, tmp_path, encoders):
    small_suspect(store_uri, encoders)
    sanitizer = Sanitizer(
        defense=BMAIU(learning_rate=1e30, clip_norm=1e30, minimum_clean_similarity=-1),
        device="cpu",
        tracking_uri=store_uri,
        workdir=tmp_path / "job",
    )
    with pytest.raises(TrainingError, match="learning rate"):
        sanitizer.run("models:/suspect/1")
    client = MlflowClient(store_uri)
    assert len(client.search_model_versions("name='suspect'")) == 1
    runs = client.search_runs([client.get_experiment_by_name("sanitize").experiment_id])
    statuses = {run.info.run_name: run.info.status for run in runs}
    assert statuses == {"bmaiu suspect/1": "FAILED", "implant": "FAILED", "evaluate-before": "FINISHED"}


@pytest.mark.slow
def test_an_encoder_is_not_taken_for_a_classifier(store_uri, tmp_path, encoders):
    known = Knowledge(kind="classifier", data="digits#0:64", arch="small-cnn", normalization="half", image_size=32)
    with pytest.raises(sanitize.SanitizeError, match="classifier"):
        take_in(encoders.backdoored_file, "suspect", known, tracking_uri=store_uri)
    small_suspect(store_uri, encoders)
    bind_knowledge("models:/suspect", known, tracking_uri=store_uri)
    with pytest.raises(ConfigError, match="bound as classifier"):
        Sanitizer(defense="bmaiu", tracking_uri=store_uri, workdir=tmp_path / "job").run("models:/suspect/1")


def test_a_full_disk_is_one_clear_error_and_leaves_no_partial_checkpoint(tmp_path):
    script = (
        "import resource, signal, sys, torch; from pathlib import Path;"
        "from sanitize.training import Checkpoints; from sanitize.errors import WorkdirError;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "checkpoints = Checkpoints(Path(sys.argv[1]));"
        "checkpoints.save('stage', {'step': 1});"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));\n"
        "try: checkpoints.save('stage', {'weights': torch.zeros(1_000_000)})\n"
        "except WorkdirError as error: print(error)\n"
        "else: sys.exit('no error')"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "--workdir" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["stage.ckpt"]
    assert torch.load(tmp_path / "stage.ckpt", weights_only=True) == {"step": 1}


def test_a_work_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkdirError, match="--workdir"):
        Sanitizer(defense="bmaiu", workdir=tmp_path / "file" / "job").run("models:/suspect/1")
