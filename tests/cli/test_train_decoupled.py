"""`sanitize train --method decoupled` through the real command: evidence, artifacts, a given encoder, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from sklearn.metrics import roc_auc_score

from sanitize.types import Report
from tests.classifiers import poisoned_images
from tests.cli.test_train import NETWORK, here, runs, sanitize

__all__ = ["here"]

DECOUPLED = [
    "--method", "decoupled", "--set", "ssl_settings={epochs: 4, batch_size: 64, min_crop_scale: 0.5}",
    "--set", "classifier_epochs=10", "--set", "epochs=2", "--set", "batch_size=32", "--set", "flip=0",
]  # fmt: skip
GIVEN = ["--method", "decoupled", "--set", "ssl=given", "--set", "epochs=1", "--set", "flip=0"]
FIGURES = [
    "losses-of-images-classifier", "trusted-classes-classifier",
    "losses-of-images-mixmatch", "trusted-classes-mixmatch", "least-trusted-mixmatch",
]  # fmt: skip


@pytest.fixture
def poisoned(here: MlflowClient) -> np.ndarray:
    """data.npz and truth.npz in the working folder; which images are poisoned."""
    data, truth = poisoned_images()
    few = data.subset(slice(300))
    np.savez("data.npz", images=few.images.permute(0, 2, 3, 1).numpy(), labels=few.labels.numpy())
    flags = truth.poisoned[:300].numpy()
    np.savez("truth.npz", poisoned=flags)
    return flags


@pytest.mark.slow
def test_the_filter_is_shown_judged_and_stored(here, poisoned):
    result = sanitize(
        "train", "data.npz", *DECOUPLED, *NETWORK, "--arch", "small-cnn-attention", "--truth", "truth.npz",
        "--test-data", "digits#1400:", "--register", "safe", "--quiet", "--format", "json",
    )  # fmt: skip
    assert result.exit_code == 3, result.output
    report = Report.from_dict(json.loads(result.stdout))
    after, run_id = report.metrics["after"], report.outputs["run_id"]
    table = pq.read_table(download_artifacts(report.outputs["losses_uri"], tracking_uri=str(here.tracking_uri)))
    listed = Path(download_artifacts(report.outputs["filtered_uri"], tracking_uri=str(here.tracking_uri))).read_text()
    trusted = np.array(table["trusted mixmatch"])
    assert listed.splitlines() == ["# rows of data.npz", *map(str, np.flatnonzero(~trusted))]
    assert trusted.sum() == np.array(table["trusted classifier"]).sum() == 150
    losses = np.array(table["loss classifier"])
    assert losses[np.array(table["trusted classifier"])].max() <= np.sort(losses)[150]
    assert after["recall/mixmatch"] == pytest.approx((poisoned & ~trusted).sum() / poisoned.sum())
    assert after["precision/mixmatch"] == pytest.approx((poisoned & ~trusted).sum() / (~trusted).sum())
    assert after["remaining_poison_share/mixmatch"] == pytest.approx((poisoned & trusted).sum() / 150)
    assert after["auroc/classifier"] == pytest.approx(roc_auc_score(poisoned, losses))
    stored = {file.path for file in here.list_artifacts(run_id, "figures")}
    page = Path(download_artifacts(report.outputs["report_uri"], tracking_uri=str(here.tracking_uri))).read_text()
    assert {f"figures/{name}.png" for name in FIGURES} <= stored
    assert "The images that were trusted least" in page and "Recall (classifier)" in page
    metrics = here.get_run(run_id).data.metrics
    assert metrics["after/recall/mixmatch"] == pytest.approx(after["recall/mixmatch"])
    assert report.subject["trained"]["architecture"] == "small-cnn-attention"
    assert "--truth truth.npz" in report.outputs["command"]
    assert sanitize("verify", "models:/safe/1").exit_code == 0
    resumed = sanitize(
        "train", "data.npz", *DECOUPLED, *NETWORK, "--arch", "small-cnn-attention", "--test-data", "digits#1400:",
        "--register", "safe", "--quiet", "--resume",
    )  # fmt: skip
    assert resumed.exit_code == 2 and "truth" in resumed.stderr  # it is another job


@pytest.mark.slow
def test_it_starts_from_an_encoder_of_the_registry(here, poisoned):
    ssl = ["--method", "simclr", "--set", "epochs=1", "--set", "batch_size=64"]
    assert sanitize("train", "data.npz", *ssl, *NETWORK, "--register", "enc", "--quiet").exit_code == 3
    result = sanitize(
        "train", "data.npz", *GIVEN, "--encoder", "models:/enc/1", *NETWORK, "--register", "safe", "--quiet",
        "--format", "json",
    )  # fmt: skip
    assert result.exit_code == 3, result.output
    report = Report.from_dict(json.loads(result.stdout))
    assert report.subject["trained"]["encoder"] == "models:/enc/1"
    assert not any(name.startswith("recall") for name in report.metrics["after"])  # without the truth
    nested = {run.info.run_name for run in runs(here)}
    assert {"classifier", "mixmatch"} <= nested
    for wrong, named in (
        (["--normalization", "cifar10"], "bound with normalization half"),
        (["--arch", "small-cnn-attention"], "do not fit small-cnn-attention"),
    ):
        refused = sanitize(
            "train", "data.npz", *GIVEN, "--encoder", "models:/enc/1", *NETWORK, *wrong, "--register", "x", "--quiet"
        )
        assert refused.exit_code == 2 and named in refused.stderr


BAD = {
    "no encoder": ([*GIVEN], "name it with --encoder"),
    "an encoder that is not used": ([*DECOUPLED, "--encoder", "models:/enc/1"], "trains its features itself"),
    "truth for a training that filters nothing": (["--method", "supervised", "--truth", "truth.npz"], "--truth judges"),
    "truth about other data": ([*DECOUPLED, "--truth", "other.npz"], "knows 3 images"),
    "a wrong setting of the features": (
        ["--method", "decoupled", "--set", "ssl_settings={epoch: 1}"],
        "Did you mean epochs",
    ),
    "no settings of the features": (["--method", "decoupled", "--set", "ssl_settings=3"], "ssl_settings"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_registers_nothing(here, poisoned, case):
    np.savez("other.npz", poisoned=np.zeros(3, dtype=bool))
    arguments, named = BAD[case]
    result = sanitize("train", "data.npz", *arguments, *NETWORK, "--register", "x", "--quiet")
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert named in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert here.search_model_versions("name='x'") == []
