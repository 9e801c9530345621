"""A real MLflow server sends real webhooks to a real `sanitize serve`; and the load with a kill in the middle."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from benchmarks.webhooks import SECRET, Service, run
from sanitize.intake import take_in
from sanitize.serve.queue import Queue
from sanitize.serve.worker import ALARM_TAG, ALARMS
from sanitize.tracking import Store
from sanitize.tracking.intake import register_model_file
from tests.gate.conftest import KNOWN
from tests.hostile.pickles import ARMED, CANARY, torch_zip

pytestmark = pytest.mark.slow


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    file = tmp_path / "lenient.yaml"
    file.write_text("false_alarm_rate: 0.000001\nminimum_references: 2\n")
    return file


def eventually(condition: Callable[[], bool], service: Service, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.3)
    pytest.fail(f"it did not happen; the log says: {service.log.read_text()[-3000:]}")


def test_candidates_are_examined_and_foreign_approvals_raise_an_alarm(
    server, encoders, reference_files, policy, tmp_path
):
    client = MlflowClient(server)
    for file in reference_files[:2]:
        take_in(file, "clean", KNOWN, tracking_uri=server)
    take_in(encoders.clean_file, "inbox", KNOWN, tracking_uri=server)
    take_in(encoders.backdoored_file, "inbox", KNOWN, tracking_uri=server)
    folder = tmp_path / "hostile"
    folder.mkdir()
    register_model_file(Store(server), torch_zip(folder / "m.pth", ARMED["pickle-build"][0](folder)), "inbox")
    service = Service(
        tmp_path, "--tracking-uri", server, "--policy", str(policy), "--device", "cpu", "--detector-set", "steps=1",
        "--reference", "models:/clean/1", "--reference", "models:/clean/2", "--approve-into", "released",
    )  # fmt: skip
    service.start()
    try:
        client.create_webhook(
            "gate", f"http://127.0.0.1:{service.port}/webhook", ["model_version_alias.created"], secret=SECRET
        )
        client.set_registered_model_alias("inbox", "candidate", "1")
        eventually(lambda: "released" in {model.name for model in client.search_registered_models()}, service)
        eventually(lambda: client.get_registered_model("released").aliases.get("approved") == "1", service)
        assert client.get_model_version("inbox", "1").tags["sanitize.gate"] == "approved"

        client.set_registered_model_alias("inbox", "candidate", "3")  # the hostile one
        eventually(lambda: client.get_model_version("inbox", "3").tags.get("sanitize.gate") == "rejected", service)
        assert not (folder / CANARY).exists()

        client.set_registered_model_alias("inbox", "approved", "2")  # by hand, past the gate
        eventually(lambda: ALARM_TAG in client.get_model_version("inbox", "2").tags, service)
        eventually(lambda: "ALARM: models:/inbox/2" in service.log.read_text(), service)
        queue = Queue(service.queue)
        eventually(lambda: set(queue.counts()) == {"done"}, service)
        results = sorted(queue.results().values())
        queue.close()
        experiment = client.get_experiment_by_name(ALARMS)
        (alarm,) = client.search_runs([experiment.experiment_id])
        assert alarm.data.tags["sanitize.subject"] == "models:/inbox/2"
        assert [result for result in results if "as the gate decided" in result] == [
            "models:/released/1: approved, as the gate decided"  # the gate's own approval came back as a webhook
        ]
        assert ALARM_TAG not in client.get_model_version("released", "1").tags
    finally:
        service.stop()


def test_nothing_is_lost_when_the_service_is_killed(store_uri, tmp_path):
    load, counts, lost = run(tmp_path, rate=25, seconds=4, options=("--tracking-uri", store_uri, "--device", "cpu"))
    assert lost == []
    assert counts == {"done": 100}
    assert len(set(load.acknowledged)) == 100
    assert load.resent  # the kill was noticed


def test_what_does_not_fit_is_refused_before_listening(store_uri, tmp_path):
    from tests.cli.test_commands import is_one_clear_paragraph, sanitize

    short = tmp_path / "secret"
    short.write_text("too short\n")
    for options in (["--secret-file", short], ["--secret-file", tmp_path / "none"]):
        assert is_one_clear_paragraph(sanitize("serve", *options, folder=tmp_path, store=store_uri))
    short.write_text("long enough for a secret\n")
    refused = sanitize("serve", "--secret-file", short, "--method", "bmaui", folder=tmp_path, store=store_uri)
    assert refused.returncode == 2
    assert "error: unknown" in refused.stderr and "Did you mean bmaiu" in refused.stderr
    assert "Traceback" not in refused.stderr
