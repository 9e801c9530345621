"""`sanitize scan` through the real command and through Python, against a real store."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from mlflow import MlflowClient

from sanitize.detection.collapse import FeatureCollapse
from sanitize.errors import ConfigError
from sanitize.inputs import Request
from sanitize.intake import Knowledge, take_in
from sanitize.scan import Scan
from sanitize.types import Verdict

KNOWN = Knowledge(data="digits#0:420", arch="small-cnn", normalization="half", image_size=32)


def run(*arguments: str, store: str):
    command = [sys.executable, "-m", "sanitize", "scan", *arguments, "--tracking-uri", store, "--quiet"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def references(store_uri, reference_files) -> list[str]:
    return [take_in(file, "clean", KNOWN, tracking_uri=store_uri).uri for file in reference_files]


def test_without_references_nothing_is_settled(suspect, tmp_path):
    file = tmp_path / "report.json"
    done = run("models:/suspect/1", "--set", "steps=2", "--output", str(file), store=suspect)
    assert done.returncode == 3, done.stderr
    assert "--reference" in done.stdout
    report = json.loads(file.read_text())
    assert report["verdict"] == "inconclusive"
    assert report["metrics"]["before"]["collapse_patch"] > 0
    assert report["unmeasured"]["chance/collapse_patch"]
    client = MlflowClient(suspect)
    assert [str(version.version) for version in client.search_model_versions("name='suspect'")] == ["1"]
    logged = client.get_run(report["outputs"]["run_id"])
    assert logged.info.status == "FINISHED"
    assert logged.data.tags["sanitize.verdict"] == "inconclusive"
    assert {"report.html", "report.json"} <= {file.path for file in client.list_artifacts(logged.info.run_id)}


@pytest.mark.slow
def test_five_references_tell_the_backdoored_encoder_from_a_clean_one(suspect, references, encoders):
    take_in(encoders.clean_file, "innocent", KNOWN, tracking_uri=suspect)
    options = [part for uri in references for part in ("--reference", uri)] + ["--set", "starts=4", "--set", "steps=5"]
    guilty = run("models:/suspect/1", *options, "--format", "json", store=suspect)
    assert guilty.returncode == 1, guilty.stderr
    report = json.loads(guilty.stdout)
    assert report["metrics"]["before"]["chance/collapse_patch"] < 0.025
    assert "feature-collapse-out-of-line" in {finding["rule"] for finding in report["findings"]}
    innocent = run("models:/innocent/1", *options, "--format", "json", store=suspect)
    assert innocent.returncode == 0, innocent.stdout
    reasons = " ".join(json.loads(innocent.stdout)["reasons"])
    assert "no evidence" in reasons and "5 %" in reasons.replace("5%", "5 %")
    assert "safe" not in innocent.stdout


def test_bad_input_is_refused_and_leaves_no_run(suspect):
    scan = Scan(FeatureCollapse(steps=1), device="cpu", tracking_uri=suspect)
    with pytest.raises(ConfigError, match="weights of the suspect"):
        scan.run(Request(model="models:/suspect/1"), references=["models:/suspect/1"])
    assert run("models:/suspect/1", "--method", "decre", store=suspect).returncode == 2
    client = MlflowClient(suspect)
    experiment = client.get_experiment_by_name("sanitize")
    assert experiment is None or not client.search_runs([experiment.experiment_id])


def test_a_few_references_give_chances_but_no_verdict(suspect, references):
    scan = Scan(FeatureCollapse(steps=2), device="cpu", tracking_uri=suspect)
    report = scan.run(Request(model="models:/suspect/1"), references=references[:2])
    assert report.verdict is Verdict.INCONCLUSIVE
    assert report.metrics["before"]["chance/collapse_patch"] is not None
