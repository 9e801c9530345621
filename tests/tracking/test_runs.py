from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import mlflow
import pytest
import torch

from sanitize.data.images import ImageSet
from sanitize.errors import TrackingError, TrainingError
from sanitize.tracking import RunRecorder, Store, mark_interrupted


def get(store, recorder):
    return store.client.get_run(recorder.run_id)


def stages(store, recorder):
    found = store.client.search_runs([recorder.experiment_id], f"tags.`mlflow.parentRunId` = '{recorder.run_id}'")
    return {run.info.run_name: run for run in found}


def curve(store, run_id, name):
    history = store.client.get_metric_history(run_id, name)
    return sorted((point.step, point.value) for point in history)


def test_stages_metrics_and_files(store):
    with RunRecorder(store, name="bmaiu on suspect", tags={"a": "b"}) as recorder:
        for stage in ("implant", "unlearn"):
            with recorder.stage(stage):
                for step in range(3):
                    recorder.metrics(stage, {"loss": step / 2, "accuracy": 1}, step)
        recorder.params({"method": "bmaiu", "bmaiu": {"epochs": 20, "empty": {}}, "long": "x" * 7000})
        recorder.figure("losses", b"png")
        recorder.text("notes/a.txt", "text")
        recorder.summary({"after/clean_accuracy": 0.9, "after/attack_success_rate": None})
        assert recorder.file(Path(__file__), "code") == f"runs:/{recorder.run_id}/code/test_runs.py"

    run = get(store, recorder)
    assert run.info.status == "FINISHED"
    assert run.data.tags["a"] == "b"
    assert run.data.metrics["after/clean_accuracy"] == 0.9
    assert "after/attack_success_rate" not in run.data.metrics
    assert run.data.params["bmaiu.epochs"] == "20"
    assert len(run.data.params["long"]) == 6000
    names = {info.path for info in store.client.list_artifacts(recorder.run_id)}
    assert names == {"params", "figures", "notes", "code"}
    assert curve(store, recorder.run_id, "unlearn/loss") == [(0, 0.0), (1, 0.5), (2, 1.0)]
    children = stages(store, recorder)
    assert children.keys() == {"implant", "unlearn"}
    assert curve(store, children["implant"].info.run_id, "loss") == [(0, 0.0), (1, 0.5), (2, 1.0)]
    assert {child.info.status for child in children.values()} == {"FINISHED"}
    assert recorder.run_url is None


def test_many_metrics_are_fast(store):
    with RunRecorder(store) as recorder, recorder.stage("train"):
        started = time.monotonic()
        for step in range(1500):
            recorder.metrics("train", {"loss": step, "rate": 0.1}, step)
        assert time.monotonic() - started < 5
    assert len(curve(store, recorder.run_id, "train/loss")) == 1500


def test_slow_metrics_do_not_wait_for_the_end(store):
    with RunRecorder(store) as recorder, recorder.stage("train"):
        recorder.metrics("train", {"loss": 1}, 0)
        assert get(store, recorder).data.metrics == {"train/loss": 1}


def test_inputs_have_our_digest(store):
    images = ImageSet(
        images=torch.zeros(20, 3, 8, 8, dtype=torch.uint8), labels=torch.arange(20) % 4, uri="models:/scraped/1#:20"
    )
    with RunRecorder(store) as recorder:
        recorder.input(images, "clean")
        recorder.input(images.without_labels(), "test")
    inputs = get(store, recorder).inputs.dataset_inputs
    assert {tag.value for entry in inputs for tag in entry.tags if tag.key == "mlflow.data.context"} == {
        "clean",
        "test",
    }
    (clean,) = (entry for entry in inputs if any(tag.value == "clean" for tag in entry.tags))
    assert clean.dataset.digest == images.sha256[:36]
    assert images.sha256 in {tag.value for tag in clean.tags}
    assert '"images": 20' in clean.dataset.profile
    assert '"classes": 4' in clean.dataset.profile
    assert mlflow.data.get_source(clean.dataset).uri == "models:/scraped/1#:20"


def test_a_logged_input_can_be_loaded_again(store, store_uri, suspect_file, tmp_path, monkeypatch):
    from sanitize.tracking import register_data
    from sanitize.tracking.datasets import ImageSource

    register_data(store, suspect_file, "scraped")
    loaded = ImageSource("models:/scraped/1#:20", store_uri).load(str(tmp_path / "copy"))
    assert loaded == f"{tmp_path}/copy/suspect.pth#:20"
    assert ImageSource("digits").load() == "digits"


@pytest.mark.parametrize(
    ("error", "status"), [(TrainingError("loss is NaN\nin epoch 3"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_status_after_an_error(store, error, status):
    with pytest.raises(type(error)), RunRecorder(store) as recorder, recorder.stage("train"):
        recorder.metrics("train", {"loss": 1}, 0)
        recorder.metrics("train", {"loss": 2}, 1)
        raise error
    run = get(store, recorder)
    assert run.info.status == status
    assert stages(store, recorder)["train"].info.status == status
    expected = "TrainingError: loss is NaN in epoch 3" if status == "FAILED" else "KeyboardInterrupt"
    assert run.data.tags["sanitize.error"] == expected
    assert len(curve(store, recorder.run_id, "train/loss")) == 2


def test_sigterm(store):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, RunRecorder(store) as recorder, recorder.stage("train"):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert caught.value.code == 143
    assert get(store, recorder).info.status == "KILLED"
    assert stages(store, recorder)["train"].info.status == "KILLED"
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_handler_of_the_caller_is_left_alone(store):
    mine = lambda *_: None  # noqa: E731
    before = signal.signal(signal.SIGTERM, mine)
    try:
        with RunRecorder(store):
            assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_resume_continues_run_and_stages(store):
    with pytest.raises(KeyboardInterrupt), RunRecorder(store) as first, first.stage("train"):
        first.params({"epochs": 4, "device": "cpu"})
        for step in (0, 1):
            first.metrics("train", {"loss": 10 - step}, step)
        raise KeyboardInterrupt
    with RunRecorder.resume(store, first.run_id) as second, second.stage("train"):
        second.params({"epochs": 4, "device": "cuda", "new": 1})
        for step in (1, 2, 3):
            second.metrics("train", {"loss": 10 - step}, step)

    run = get(store, second)
    assert run.info.status == "FINISHED"
    assert "sanitize.error" not in run.data.tags
    assert run.data.params == {"epochs": "4", "device": "cpu", "new": "1"}
    assert run.data.tags["sanitize.resumed_with.device"] == "cuda"
    (child,) = stages(store, second).values()
    whole = [(step, 10.0 - step) for step in range(4)]
    assert curve(store, child.info.run_id, "loss") == whole
    assert curve(store, run.info.run_id, "train/loss") == whole


def test_resume_of_nothing(store):
    with pytest.raises(TrackingError, match="there is no run abc"), RunRecorder.resume(store, "abc"):
        pass


def test_a_run_that_died_is_marked(store):
    recorder = RunRecorder(store).__enter__()
    stage = recorder.stage("train")
    stage.__enter__()
    mark_interrupted(store, recorder.run_id)
    for run in (get(store, recorder), stages(store, recorder)["train"]):
        assert run.info.status == "KILLED"
        assert "without closing" in run.data.tags["sanitize.interrupted"]
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    stage.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)


def test_a_store_that_goes_away_for_a_moment(store, monkeypatch):
    with RunRecorder(store) as recorder, recorder.stage("train"):
        with monkeypatch.context() as broken:
            broken.setattr(store.client, "log_batch", lambda *_, **__: (_ for _ in ()).throw(OSError(5, "gone")))
            recorder.metrics("train", {"loss": 1}, 0)
        recorder.metrics("train", {"loss": 2}, 1)
    assert curve(store, recorder.run_id, "train/loss") == [(0, 1.0), (1, 2.0)]


def test_the_first_error_wins_over_a_store_that_is_gone(store, monkeypatch):
    with pytest.raises(TrainingError, match="NaN"), RunRecorder(store):
        monkeypatch.setattr(store.client, "set_terminated", lambda *_: (_ for _ in ()).throw(OSError(5, "gone")))
        raise TrainingError("NaN")


def test_mlflow_globals_stay_as_they_are(store, capfd):
    before = mlflow.get_tracking_uri(), dict(os.environ)
    with RunRecorder(store) as recorder, recorder.stage("train"):
        assert mlflow.active_run() is None
    assert (mlflow.get_tracking_uri(), dict(os.environ)) == before
    assert capfd.readouterr().out == ""
    with pytest.raises(TrackingError, match="was not started"):
        _ = RunRecorder(Store()).run_id
