"""`sanitize dataset` through the real command: finds planted poison, leaves clean data alone, refuses bad input."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from typer.testing import CliRunner

from sanitize.attacks import BadNets
from sanitize.cli import app
from sanitize.data import load_images
from sanitize.data.suspected import load_suspected
from sanitize.data.writing import write_parquet
from sanitize.intake import Knowledge, take_in
from sanitize.tracking import Store, register_data
from sanitize.training import Engine
from sanitize.types import Report, Verdict
from tests.conftest import copied_store

NETWORK = ["--arch", "small-cnn", "--normalization", "half"]
KNOWN = Knowledge(kind="classifier", arch="small-cnn", normalization="half", image_size=32)


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


def save_truth(poisoned: torch.Tensor, file: str) -> str:
    np.savez(file, poisoned=poisoned.numpy())
    return file


@pytest.mark.slow
def test_planted_poison_is_found_removed_and_what_is_left_registered(here, classifiers):
    data, truth = classifiers.poisoned_data, classifiers.truth.poisoned
    write_parquet(data, Path("scraped.parquet"))
    register_data(Store(), Path("scraped.parquet"), "scraped")
    take_in(classifiers.backdoored_file, "suspect", KNOWN)
    arguments = [
        "dataset", "models:/scraped@new", "--method", "fct", "--model", "models:/suspect/1", "--quiet", "--format",
        "json", "--truth", save_truth(truth, "truth.npz"),
    ]  # fmt: skip
    here.set_registered_model_alias("scraped", "new", "1")
    result = sanitize(*arguments, "--output", "out.html")
    assert result.exit_code == 1, result.output
    values = json.loads(result.stdout)
    report = Report.from_dict(values)
    assert report.verdict is Verdict.FAIL
    assert set(values["subject"]) == {"uri", "kind", "sha256", "threat_model"}
    assert (report.subject["uri"], report.subject["kind"]) == ("models:/scraped/1", "data set")
    assert report.subject["threat_model"]["uri"] == "models:/suspect/1"
    measured = report.metrics["after"]
    assert set(measured) == {
        "removed_share", "auroc", "recall", "precision", "false_alarm_rate", "poison_share", "remaining_poison_share",
    }  # fmt: skip
    assert measured["auroc"] > 0.9
    assert measured["recall"] > 0.55
    assert measured["precision"] > 0.85
    assert measured["remaining_poison_share"] < 0.5 * measured["poison_share"]
    assert set(report.outputs) == {
        "data_uri", "removed", "kept", "scores_uri", "flagged_uri", "report_uri", "folder", "run_id", "run_url",
        "data_url", "next", "command",
    }  # fmt: skip
    assert report.outputs["data_uri"] == "models:/scraped/2"
    (finding,) = [finding for finding in report.findings if finding.rule == "data-poisoned"]
    assert finding.evidence["classes"]["3"]["poisoned"] == report.outputs["removed"]
    assert sum(finding.evidence["counts"].values()) == 1400

    folder = Path(report.outputs["folder"])
    table = pq.read_table(folder / "scores.parquet").to_pydict()
    assert table["index"] == list(range(1400))
    assert table["label"] == data.labels.tolist()
    flagged = load_suspected(folder / "flagged.txt", 1400)
    assert flagged.tolist() == [decision == "poisoned" for decision in table["decision"]]
    assert min(score for score, bad in zip(table["score"], flagged.tolist(), strict=True) if bad) > np.median(
        table["score"]
    )
    left = load_images("models:/scraped/2", resolve=lambda uri: Store().artifact(uri, Path("copy")))
    assert left.sha256 == data.subset(~flagged).sha256

    version = here.get_model_version("scraped", "2")
    assert version.tags["sanitize.parent"] == "models:/scraped/1"
    assert (version.tags["sanitize.kind"], version.tags["sanitize.method"]) == ("data", "fct")
    assert "Cleaned from" in version.description
    assert here.get_model_version("scraped", "1").tags["sanitize.cleaned"] == "models:/scraped/2"
    assert {name: str(number) for name, number in here.get_registered_model("scraped").aliases.items()} == {"new": "1"}
    run = here.get_run(report.outputs["run_id"])
    assert run.data.metrics["after/recall"] == pytest.approx(measured["recall"])
    assert {item.path for item in here.list_artifacts(run.info.run_id, "figures")} == {
        "figures/scores.png", "figures/most-suspicious.png",
    }  # fmt: skip
    assert {run.info.status for run in runs(here)} == {"FINISHED"}
    assert Path("out.html").read_text().count("data:image/png") == 2
    assert f"--suspected {folder / 'flagged.txt'}" in report.outputs["next"][-1]

    again = sanitize(*arguments, "--resume")
    assert (again.exit_code, json.loads(again.stdout)) == (1, values)
    assert len(here.search_model_versions("name='scraped'")) == 2


@pytest.mark.slow
def test_clean_data_lose_nothing_even_in_a_backdoored_model(here, classifiers):
    take_in(classifiers.backdoored_file, "suspect", KNOWN)
    arguments = ["dataset", "digits#0:1400", "--method", "fct", "--model", "models:/suspect/1", "--register", "clean"]
    unknown = sanitize(*arguments, "--quiet", "--format", "json")
    assert unknown.exit_code == 3, unknown.output
    report = Report.from_dict(json.loads(unknown.stdout))
    assert (report.outputs["data_uri"], report.outputs["removed"]) == (None, 0)
    assert report.metrics["after"]["recall"] is None
    assert "--truth" in report.unmeasured["recall"]
    assert [finding.rule for finding in report.findings if finding.rule.startswith("data-")] == ["data-no-evidence"]
    truth = save_truth(torch.zeros(1400, dtype=torch.bool), "truth.npz")
    known = sanitize(*arguments, "--quiet", "--format", "json", "--truth", truth)
    assert known.exit_code == 0, known.output
    assert json.loads(known.stdout)["metrics"]["after"]["false_alarm_rate"] == 0.0
    assert here.search_model_versions("name='clean'") == []
    assert {run.info.status for run in runs(here)} == {"FINISHED"}


@pytest.mark.slow
def test_planted_poison_is_found_without_a_model(here):
    attack = BadNets(target=0, rate=0.1)
    poisoned = attack.poison(load_images("digits#0:1400"), Engine(device="cpu"))
    write_parquet(poisoned.data, Path("scraped.parquet"))
    training = ("epochs=12", "learning_rate=0.1", "crop_padding=2")
    result = sanitize(
        "dataset", "scraped.parquet", "--method", "fct", *NETWORK, "--register", "scraped", "--quiet", "--format",
        "json", *(part for setting in training for part in ("--train-set", setting)),
        "--truth", save_truth(poisoned.truth.poisoned, "truth.npz"),
    )  # fmt: skip
    assert result.exit_code == 1, result.output
    report = Report.from_dict(json.loads(result.stdout))
    assert report.metrics["after"]["recall"] > 0.75
    assert report.metrics["after"]["precision"] > 0.9
    left = load_images("models:/scraped/1", resolve=lambda uri: Store().artifact(uri, Path("copy")))
    assert len(left) == report.outputs["kept"]
    assert here.get_model_version("scraped", "1").tags["sanitize.parent"] == "scraped.parquet"


@pytest.mark.slow
def test_without_a_model_one_is_trained_and_a_new_one_on_what_is_left(here):
    result = sanitize(
        "dataset", "digits#0:280", "--method", "fct", "--set", "decision=quota", "--set", "draws=1", *NETWORK,
        "--train-set", "learning_rate=0.05", "--train-set", "epochs=3", "--register", "rest", "--retrain",
        "--register-model", "mine", "--retrain-set", "epochs=1", "--test-data", "digits#1400:", "--quiet",
        "--format", "json",
    )  # fmt: skip
    assert result.exit_code == 1, result.output
    report = Report.from_dict(json.loads(result.stdout))
    assert "quota" in report.reasons[1]
    assert (report.outputs["removed"], report.outputs["kept"]) == (14, 266)
    assert 0 < report.metrics["after"]["threat_model_accuracy"] <= 1
    assert report.metrics["after"]["clean_accuracy"] is not None
    assert "epochs=3" in report.subject["threat_model"]["training"]
    assert here.get_run(report.outputs["run_id"]).data.params["train.learning_rate"] == "0.05"
    assert here.get_model_version("rest", "1").tags["sanitize.parent"] == "digits#0:280"
    trained = here.get_model_version("mine", "1")
    assert (report.outputs["model_uri"], trained.tags["sanitize.parent"]) == ("models:/mine/1", "models:/rest/1")
    assert trained.run_id == report.outputs["retraining_run"]
    assert sanitize("verify", "models:/mine/1").exit_code == 0
    assert {run.info.status for run in runs(here)} == {"FINISHED"}


def write_holes(path: Path) -> None:
    """280 digits, of which the images 5 and 77 are damaged."""
    table = pq.read_table(write_parquet(load_images("digits#0:280"), path))
    pictures = table.column("image").to_pylist()
    for row in (5, 77):
        pictures[row]["bytes"] = b"not a picture"
    column = pa.array(pictures, table.schema.field("image").type)
    pq.write_table(table.set_column(0, table.schema.field("image"), column), path)


@pytest.mark.slow
def test_unreadable_images_are_left_out_where_that_is_asked_for(here):
    write_holes(Path("holes.parquet"))
    refused = sanitize("intake", "holes.parquet", "--name", "scraped")
    assert (refused.exit_code, here.search_registered_models()) == (2, [])
    assert "2 of 280 images in holes.parquet cannot be read: row 5: not a picture" in refused.stderr
    assert "--skip-unreadable" in refused.stderr
    taken = sanitize("intake", "holes.parquet", "--name", "scraped", "--skip-unreadable")
    assert (taken.exit_code, taken.stdout.strip()) == (0, "models:/scraped/1")
    assert "2 of 280 images in holes.parquet cannot be read" in taken.stderr

    arguments = [
        "dataset", "models:/scraped/1", "--method", "fct", "--set", "draws=1", *NETWORK, "--train-set", "epochs=1",
        "--skip-unreadable", "--quiet", "--format", "json",
    ]  # fmt: skip
    poisoned = torch.arange(280) == 77  # rows of the data, also of those that cannot be read
    result = sanitize(*arguments, "--set", "decision=quota", "--truth", save_truth(poisoned, "truth.npz"))
    assert result.exit_code == 1, result.output
    report = Report.from_dict(json.loads(result.stdout))
    (finding,) = [finding for finding in report.findings if finding.rule == "data-unreadable"]
    assert [image["row"] for image in finding.evidence["images"]] == [5, 77]
    assert "2 images cannot be read, and were not examined" in report.reasons
    assert report.metrics["after"]["poison_share"] == 0.0
    assert report.outputs["kept"] + report.outputs["removed"] == 278
    assert "--skip-unreadable" in report.outputs["command"]

    folder = Path(report.outputs["folder"])
    table = pq.read_table(folder / "scores.parquet").to_pydict()
    assert table["index"] == list(range(280))
    assert [row for row, decision in enumerate(table["decision"]) if decision == "unreadable"] == [5, 77]
    assert [row for row, score in enumerate(table["score"]) if score is None] == [5, 77]
    flagged = load_suspected(folder / "flagged.txt", 280)
    assert flagged.tolist() == [decision == "poisoned" for decision in table["decision"]]
    assert "# row 77 cannot be read: row 77: not a picture" in (folder / "flagged.txt").read_text()
    left = load_images("models:/scraped/2", resolve=lambda uri: Store().artifact(uri, Path("copy")))
    kept = torch.tensor([row for row in range(280) if row not in (5, 77) and not flagged[row]])
    assert left.sha256 == load_images("digits#0:280").subset(kept).sha256

    clean = save_truth(torch.zeros(280, dtype=torch.bool), "clean.npz")
    nothing = sanitize(*arguments, "--truth", clean)
    assert nothing.exit_code == 3, nothing.output  # without the damaged images it would be a pass
    assert "2 images cannot be read, and were not examined" in json.loads(nothing.stdout)["reasons"]


SUSPECT = ["--model", "models:/suspect/1", "--register", "x"]
TRAINED = [*NETWORK, "--register", "x"]
BAD_INPUT = {
    "unknown method": (["digits#0:280", "--method", "fcd", *TRAINED], "Did you mean fct"),
    "no method": (["digits#0:280", *TRAINED], "--method"),
    "unknown parameter": (["digits#0:280", "--method", "fct", "--set", "draw=1", *TRAINED], "Did you mean draws"),
    "no labels": (["flat", "--method", "fct", *TRAINED], "needs labels"),
    "no labels, with a model": (["flat", "--method", "fct", *SUSPECT], "needs labels"),
    "one class only": (["one.npz", "--method", "fct", *SUSPECT], "at least two classes"),
    "one class only, training": (["one.npz", "--method", "fct", *TRAINED], "at least two classes"),
    "too few images": (["digits#0:20", "--method", "fct", *SUSPECT], "at least 50 images"),
    "more classes than the model has": (["many.npz", "--method", "fct", *SUSPECT], "classes of the network"),
    "an encoder": (
        ["digits#0:280", "--method", "fct", "--model", "models:/encoder/1", "--register", "x"],
        "bound as encoder",
    ),
    "no such data": (["gone.parquet", "--method", "fct", *TRAINED], "gone.parquet does not exist"),
    "unreadable data": (["broken.parquet", "--method", "fct", *SUSPECT], "broken.parquet"),
    "unreadable images": (["holes.parquet", "--method", "fct", *SUSPECT], "2 of 280 images in holes.parquet cannot"),
    "unreadable images, training": (["holes.parquet", "--method", "fct", *TRAINED], "row 5: not a picture"),
    "nothing but unreadable images": (
        ["holes.parquet#5:6", "--method", "fct", "--skip-unreadable", *TRAINED],
        "1 of 1 images",
    ),
    "nowhere to go": (["digits#0:280", "--method", "fct", *NETWORK], "--register"),
    "the name of a model": (["digits#0:280", "--method", "fct", *NETWORK, "--register", "suspect"], "is a model"),
    "no network": (["digits#0:280", "--method", "fct", "--register", "x"], "--arch"),
    "no such model": (
        ["digits#0:280", "--method", "fct", "--model", "models:/gone/1", "--register", "x"],
        "There is no model 'gone'",
    ),
    "a training and a model": (
        ["digits#0:280", "--method", "fct", "--train-set", "epochs=1", *SUSPECT],
        "without --model",
    ),
    "a wrong setting of the training": (
        ["digits#0:280", "--method", "fct", "--train-set", "epoch=1", *TRAINED],
        "Did you mean epochs",
    ),
    "a new model without a name": (["digits#0:280", "--method", "fct", "--retrain", *SUSPECT], "--register-model"),
    "a new model with the name of data": (
        ["digits#0:280", "--method", "fct", "--retrain", "--register-model", "images", *SUSPECT],
        "is a data set",
    ),
    "test data for nothing": (["digits#0:280", "--method", "fct", "--test-data", "digits", *SUSPECT], "--retrain"),
    "test data without labels": (
        [
            "digits#0:280", "--method", "fct", "--retrain", "--register-model", "y", "--test-data", "flat", *SUSPECT,
        ],
        "labels",
    ),
    "the truth of other data": (["digits#0:280", "--method", "fct", "--truth", "short.npz", *SUSPECT], "is not about"),
    "no truth": (["digits#0:280", "--method", "fct", "--truth", "gone", *SUSPECT], "--truth gone"),
    "the truth of nothing planted": (
        ["digits#0:280", "--method", "fct", "--truth", "models:/images/1", *SUSPECT],
        "nothing is known",
    ),
    "shares that overlap": (
        ["digits#0:280", "--method", "fct", "--set", "clean_share=1.5", *SUSPECT],
        "less than or equal to 1",
    ),
    "nothing to resume": (["digits#0:280", "--method", "fct", *SUSPECT, "--resume"], "nothing to resume"),
}  # fmt: skip


@pytest.fixture(scope="module")
def bad_input_folder(tmp_path_factory, empty_store, classifiers, encoders):
    folder = tmp_path_factory.mktemp("bad")
    store = copied_store(empty_store, folder)
    (folder / "flat").mkdir()
    for number in range(80):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(folder / "flat" / f"{number}.png")
    pixels = np.random.default_rng(0).integers(0, 256, (120, 32, 32, 3), dtype=np.uint8)
    np.savez(folder / "one.npz", images=pixels, labels=np.full(120, 3))
    np.savez(folder / "many.npz", images=pixels, labels=np.arange(120) % 12)
    np.savez(folder / "short.npz", poisoned=np.zeros(7, dtype=bool))
    (folder / "broken.parquet").write_bytes(b"PAR1 and nothing else")
    write_holes(folder / "holes.parquet")
    take_in(classifiers.clean_file, "suspect", KNOWN, tracking_uri=store)
    bound = Knowledge(arch="small-cnn", normalization="half", image_size=32)
    take_in(encoders.clean_file, "encoder", bound, tracking_uri=store)
    register_data(Store(store), folder / "flat", "images")
    return folder, store, len(runs(MlflowClient(store)))


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_paragraph_and_leaves_nothing(case, bad_input_folder, monkeypatch):
    folder, store, known_runs = bad_input_folder
    use(store, folder, monkeypatch)
    arguments, named = BAD_INPUT[case]
    before = sorted(path for path in folder.rglob("*") if "mlflow.db" not in path.name)
    result = sanitize("dataset", *arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert named in result.stderr
    assert sorted(path for path in folder.rglob("*") if "mlflow.db" not in path.name) == before
    client = MlflowClient(store)
    assert client.search_model_versions("name='x'") == []
    assert len(runs(client)) == known_runs


def test_a_short_training_that_shows_nothing_says_how_little_it_learned(here):
    result = sanitize("dataset", "digits#0:140", "--method", "fct", *TRAINED, "--quiet", "--format", "json")
    assert result.exit_code == 3, result.output
    report = Report.from_dict(json.loads(result.stdout))
    assert f"{report.metrics['after']['threat_model_accuracy']:.1%} of its images" in report.reasons[-1]
    assert here.search_model_versions("name='x'") == []


def test_an_error_in_the_middle_registers_nothing_and_leaves_no_run_running(here):
    arguments = ["digits#0:140", "--method", "fct", *TRAINED, "--train-set", "learning_rate=1e30", "--quiet"]
    result = sanitize("dataset", *arguments)
    assert result.exit_code == 2
    assert "NaN or infinite" in result.stderr
    assert here.search_model_versions("name='x'") == []
    assert {run.info.status for run in runs(here)} == {"FAILED"}
