"""`sanitize dataset --method poisoncam` and `patchsearch` through the real command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sanitize.data import load_images
from sanitize.data.writing import write_parquet
from sanitize.intake import Knowledge, take_in
from sanitize.tracking import Store, register_data
from sanitize.types import Report, Verdict
from tests.cli.test_dataset import here, runs, sanitize
from tests.threat import load_threat
from tests.trained import unpack

__all__ = ["here"]  # a fixture
KNOWN = Knowledge(kind="encoder", arch="small-cnn", normalization="half", image_size=32)
FAST = ("mask_stride=8", "networks=1", "iterations=160", "flip=0")


@pytest.fixture(scope="module")
def threat(tmp_path_factory):
    return load_threat(unpack("threat", tmp_path_factory.mktemp("trained") / "threat"))


def settings(*values: str) -> list[str]:
    return [part for value in values for part in ("--set", value)]


@pytest.mark.slow
def test_planted_patches_are_found_removed_and_what_is_left_registered(here, threat):
    write_parquet(threat.poison.data, Path("scraped.parquet"))
    register_data(Store(), Path("scraped.parquet"), "scraped")
    take_in(threat.backdoored_file, "suspect", KNOWN)
    np.savez("truth.npz", poisoned=threat.truth.numpy(), boxes=threat.boxes.numpy())
    result = sanitize(
        "dataset", "models:/scraped/1", "--method", "poisoncam", "--model", "models:/suspect/1", *settings(*FAST),
        "--truth", "truth.npz", "--retrain", "--register-model", "mine", "--retrain-set", "epochs=1",
        "--retrain-set", "batch_size=64", "--test-data", "digits#1400:", "--quiet", "--format", "json", "--output",
        "out.html",
    )  # fmt: skip
    assert result.exit_code == 1, result.output
    report = Report.from_dict(json.loads(result.stdout))
    assert report.verdict is Verdict.FAIL
    measured = report.metrics["after"]
    assert measured["recall"] >= 0.9
    assert measured["precision"] >= 0.5
    assert measured["top20_accuracy"] >= 0.9
    assert measured["catch_rate"] > 0.5
    assert measured["calibrated_false_alarm_rate"] == 0.01
    assert measured["agreement"] > 1.5
    assert "false-alarm rate of 1.0%" in " ".join(report.reasons)

    folder = Path(report.outputs["folder"])
    table = pq.read_table(folder / "scores.parquet").to_pydict()
    assert set(table) == {
        "index", "score", "decision", "window_top", "window_left", "flips_tried", "cluster", "poison_probability",
    }  # fmt: skip
    assert max(table["window_top"]) <= 32 - 9
    removed = np.array(table["decision"]) == "poisoned"
    assert removed.tolist() == (np.array(table["poison_probability"]) > 0.5).tolist()
    left = load_images(report.outputs["data_uri"], resolve=lambda uri: Store().artifact(uri, Path("copy")))
    assert left.sha256 == threat.poison.data.subset(np.flatnonzero(~removed)).sha256
    version = here.get_model_version("scraped", "2")
    assert (version.tags["sanitize.parent"], version.tags["sanitize.method"]) == ("models:/scraped/1", "poisoncam")
    assert {item.path for item in here.list_artifacts(report.outputs["run_id"], "figures")} == {
        f"figures/{name}.png" for name in ("scores", "windows", "flips", "most-suspicious")
    }
    trained = here.get_model_version("mine", "1")
    assert (trained.tags["sanitize.parent"], trained.tags["sanitize.method"]) == ("models:/scraped/2", "simclr")
    assert Path("out.html").read_text().count("data:image/png") == 4
    assert here.get_run(report.outputs["run_id"]).data.metrics["after/top20_accuracy"] >= 0.9
    assert {run.info.status for run in runs(here)} == {"FINISHED"}


@pytest.mark.slow
def test_clean_data_pass_with_the_model_that_was_given(here, threat):
    take_in(threat.clean_file, "encoder", KNOWN)
    result = sanitize(
        "dataset", "digits#0:200", "--method", "patchsearch", "--model", "models:/encoder/1", "--register", "x",
        *settings("flip_images=12", "top=10"), "--quiet", "--format", "json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = Report.from_dict(json.loads(result.stdout))
    assert report.verdict is Verdict.PASS
    assert (report.outputs["removed"], report.outputs["data_uri"]) == (0, None)
    assert "not seen" in report.reasons[-1]
    assert here.search_model_versions("name='x'") == []


@pytest.mark.slow
def test_images_that_may_not_be_in_memory_get_the_same_scores(here, threat):
    take_in(threat.clean_file, "encoder", KNOWN)
    write_parquet(load_images("digits#0:150"), Path("scraped.parquet"))
    made = []
    for memory in ("4", "0"):
        result = sanitize(
            "dataset", "scraped.parquet", "--method", "poisoncam", "--model", "models:/encoder/1", "--register", "x",
            *settings("mask_stride=16", "flip_images=12", "top=10"), "--memory", memory, "--workdir", f"in-{memory}",
            "--quiet", "--format", "json",
        )  # fmt: skip
        assert result.exit_code in (0, 3), result.output
        report = json.loads(result.stdout)
        made.append((pq.read_table(f"in-{memory}/scores.parquet").to_pydict(), report["subject"]["sha256"]))
        assert ("--memory 0.0" in report["outputs"]["command"]) == (memory == "0")
        assert not list(Path(f"in-{memory}").rglob("*.tensor"))
    assert made[0] == made[1]


@pytest.mark.slow
def test_without_a_model_an_encoder_is_trained_whose_silence_settles_nothing(here):
    result = sanitize(
        "dataset", "digits#0:200", "--method", "poisoncam", "--arch", "small-cnn", "--normalization", "half",
        "--train-set", "epochs=2", "--train-set", "batch_size=64", *settings("mask_stride=16", "flip_images=12"),
        "--register", "x", "--quiet", "--format", "json",
    )  # fmt: skip
    assert result.exit_code == 3, result.output
    report = Report.from_dict(json.loads(result.stdout))
    assert "SimCLR(epochs=2" in report.subject["threat_model"]["training"]
    assert report.subject["threat_model"]["kind"] == "encoder"
    assert report.outputs["removed"] == 0


BAD_INPUT = {
    "fewer images than clusters": (["digits#0:120", "--set", "clusters=121"], "do not fall into 121 clusters"),
    "a window larger than the image": (["digits#0:120", "--set", "window=40"], "larger than images of 32 px"),
    "too few images": (["digits#0:99"], "at least 100 images"),
    "too many candidates": (["digits#0:120", "--set", "top=50"], "Lower top"),
    "no such classifier": (["digits#0:120", "--set", "classifier=resnet-x"], "unknown architecture"),
    "boxes of other data": (["digits#0:120", "--truth", "boxes.npz"], "`boxes` is int64 (5, 3)"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_paragraph_and_leaves_nothing(case, here):
    np.savez("boxes.npz", poisoned=np.zeros(120, dtype=bool), boxes=np.zeros((5, 3), dtype=np.int64))
    arguments, named = BAD_INPUT[case]
    network = ["--arch", "small-cnn", "--normalization", "half", "--train-set", "batch_size=32", "--register", "x"]
    result = sanitize("dataset", *arguments, "--method", "poisoncam", *network)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert named in result.stderr
    assert runs(here) == []
