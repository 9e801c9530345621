"""The gate on a real store: what it decides, tags and moves, and that it remembers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

import pytest

from sanitize.defenses import FineTune
from sanitize.errors import ArtifactError, ConfigError, TrackingError
from sanitize.gate import Decision, Waiver
from sanitize.gate.records import EXPERIMENT, approved
from sanitize.intake import Knowledge, take_in
from sanitize.policies import Policy
from sanitize.tracking import Store
from sanitize.tracking.digests import sha256_of
from sanitize.tracking.intake import register_model_file
from sanitize.types import Verdict
from tests.gate.conftest import STRICT, Registry
from tests.hostile.pickles import ARMED, CANARY, torch_zip

pytestmark = pytest.mark.slow


def decisions(registry: Registry) -> list[str]:
    """Of the runs in the experiment of the gate."""
    experiment = registry.client.get_experiment_by_name(EXPERIMENT)
    runs = registry.client.search_runs([experiment.experiment_id]) if experiment else []
    assert {run.info.status for run in runs} <= {"FINISHED"}
    return [run.data.tags["sanitize.gate"] for run in runs]


def waiver(sha256: str, *, days: int = 1) -> Waiver:
    until = date.today() + timedelta(days=days)
    rules = ("inconclusive", "feature-collapse-out-of-line")
    return Waiver(sha256=sha256, rules=rules, owner="team-vision", reason="shadow deployment", expires=until)


def test_what_passes_gets_tags_and_the_alias_and_is_remembered(registry, encoders, tmp_path):
    registry.client.set_registered_model_alias("clean", "approved", "2")
    first = registry.run()
    assert (first.verdict, first.outputs["gate"]) == (Verdict.PASS, Decision.APPROVED)
    assert first.outputs["approved_uri"] == "models:/suspect/1"
    assert first.outputs["remembered"] is False
    assert registry.aliases() == {"candidate": "1", "approved": "1"}
    digest = sha256_of(encoders.clean_file)
    tags = registry.tags()
    assert tags["sanitize.gate"] == "approved"
    assert tags["sanitize.subject_sha256"] == tags["sanitize.approved_sha256"] == digest
    assert tags["sanitize.policy"] == "lenient"
    assert tags["sanitize.gate_run_id"] == first.outputs["gate_run_id"]
    assert approved(Store(registry.uri), digest)

    second = registry.run()
    assert second.outputs["remembered"] is True
    assert second.timings["gate"] < 2
    assert second.metrics == first.metrics
    assert decisions(registry) == ["approved"]
    assert registry.tags() == tags

    registry.run(alias="production")
    assert registry.aliases() == {"candidate": "1", "approved": "1", "production": "1"}
    assert registry.aliases("clean") == {"approved": "2"}

    file = Path(registry.client.get_run(first.outputs["gate_run_id"]).info.artifact_uri.removeprefix("file://"))
    (file / "gate.json").write_text((file / "gate.json").read_text().replace("pass", "fail"))
    with pytest.raises(TrackingError, match="changed after it was written"):
        registry.run()


def test_a_copy_in_the_approved_model(registry, tmp_path):
    report = registry.run(approve_into="released")
    assert report.outputs["approved_uri"] == "models:/released/1"
    assert registry.aliases("released") == {"approved": "1"}
    assert registry.aliases() == {"candidate": "1"}
    copied = registry.tags("released")
    assert (copied["sanitize.gate_source"], copied["sanitize.gate"]) == ("models:/suspect/1", "approved")
    store = Store(registry.uri)
    copy = store.download(store.resolve("models:/released@approved"), tmp_path / "copy")
    assert sha256_of(copy) == copied["sanitize.approved_sha256"]
    assert registry.run(approve_into="released").outputs["approved_uri"] == "models:/released/1"
    assert len(store.versions("released")) == 1
    assert registry.run(STRICT, approve_into="released").outputs["approved_uri"] is None
    assert registry.aliases("released") == {}


def test_a_waiver_opens_the_gate_for_its_time_and_is_seen(registry, encoders):
    for key, value in {"sanitize.gate": "approved", "sanitize.waived": "by the submitter"}.items():
        registry.client.set_model_version_tag("suspect", "1", key, value)
    registry.client.set_registered_model_alias("suspect", "approved", "1")
    report = registry.run(STRICT)
    assert (report.verdict, report.outputs["gate"]) == (Verdict.FAIL, Decision.REJECTED)
    assert report.outputs["approved_uri"] is None
    assert registry.aliases() == {"candidate": "1"}
    assert (registry.tags()["sanitize.gate"], registry.tags()["sanitize.waived"]) == ("rejected", "-")
    renamed = Policy(**STRICT.model_dump() | {"file": "elsewhere.yaml", "sha256": "0" * 64})
    assert registry.run(renamed).outputs["remembered"] is True  # the thresholds count, not where they are written

    digest = sha256_of(encoders.clean_file)
    report = registry.run(STRICT, waivers=[waiver(digest)])
    assert (report.outputs["gate"], report.outputs["remembered"]) == (Decision.WAIVED, True)
    assert report.verdict is Verdict.PASS
    assert "team-vision" in report.reasons[0]
    assert registry.aliases()["approved"] == "1"
    assert "team-vision" in registry.tags()["sanitize.waived"]
    assert registry.tags()["sanitize.scan_verdict"] == "fail"

    ended = registry.run(STRICT, waivers=[waiver(digest, days=-1)])
    assert (ended.outputs["gate"], ended.outputs["remembered"]) == (Decision.REJECTED, True)
    assert "approved" not in registry.aliases()
    assert registry.tags()["sanitize.waived"] == "-"
    assert sorted(decisions(registry)) == ["rejected", "rejected", "rejected", "waived"]


def test_other_files_references_or_settings_are_another_question(registry, encoders):
    assert registry.run(references=["models:/clean/1"]).outputs["gate"] == Decision.UNDECIDED
    assert registry.run(references=["models:/clean/1"]).outputs["remembered"] is True
    assert registry.run(references=["models:/clean/1"], seed=1).outputs["remembered"] is False
    store = Store(registry.uri)
    place = Path(store.resolve("models:/suspect/1").source_uri.removeprefix("file://"))
    (stored,) = place.iterdir() if place.is_dir() else [place]
    shutil.copyfile(encoders.backdoored_file, stored)
    report = registry.run(references=["models:/clean/1"])
    assert report.outputs["remembered"] is False
    assert report.subject["sha256"] == sha256_of(encoders.backdoored_file)


def test_a_hostile_version_is_rejected_and_loses_the_alias(registry, tmp_path):
    folder = tmp_path / "hostile"
    folder.mkdir()
    file = torch_zip(folder / "model.pth", ARMED["pickle-build"][0](folder))
    register_model_file(Store(registry.uri), file, "suspect")
    registry.client.set_registered_model_alias("suspect", "approved", "2")
    with pytest.raises(ArtifactError, match=r"posix\.system"):
        registry.run(model="models:/suspect/2")
    assert registry.tags(version="2")["sanitize.gate"] == "rejected"
    assert "posix.system" in registry.tags(version="2")["sanitize.gate_error"]
    assert registry.aliases() == {"candidate": "1"}
    assert not (folder / CANARY).exists()


def test_only_versions_are_decided_about(registry):
    run_id = registry.client.get_model_version("suspect", "1").run_id
    with pytest.raises(ConfigError, match="the gate decides about versions"):
        registry.run(model=f"runs:/{run_id}/model")
    with pytest.raises(TrackingError):
        registry.run(model="models:/suspect@nobody")


def test_what_was_purified_is_approved_in_place_of_the_suspect(registry, encoders):
    known = Knowledge(
        data="digits#0:200", probe_data="digits#0:200", test_data="digits#1400:1500", arch="small-cnn",
        normalization="half", image_size=32, triggers=(encoders.trigger_file,),
    )  # fmt: skip
    take_in(encoders.backdoored_file, "bad", known, tracking_uri=registry.uri)
    thresholds = {"maximum_attack_success_rate": 0.7, "established_attack_success_rate": 0.75}
    policy = Policy(**STRICT.model_dump() | thresholds | {"maximum_clean_accuracy_loss": 1.0})
    options = {"defense": FineTune(epochs=12, learning_rate=0.1), "model": "models:/bad/1", "approve_into": "released"}
    report = registry.run(policy, **options)
    assert report.outputs["cleaned"]["verdict"] == "pass", report.outputs["cleaned"]
    assert (report.verdict, report.outputs["gate"]) == (Verdict.FAIL, Decision.CLEANED)
    assert report.outputs["approved_uri"] == "models:/released/1"
    assert registry.tags("released")["sanitize.gate_source"] == "models:/bad/2"
    assert registry.tags("released")["sanitize.approved_sha256"] == report.outputs["cleaned"]["sha256"]
    again = registry.run(policy, **options)
    assert (again.outputs["remembered"], again.outputs["approved_uri"]) == (True, "models:/released/1")


def test_the_command(registry, tmp_path):
    (tmp_path / "strict.yaml").write_text("false_alarm_rate: 0.999999\nminimum_references: 2\n")
    digest = registry.run(STRICT).subject["sha256"]
    (tmp_path / "strict.waivers.yaml").write_text(
        f"- {{sha256: {digest}, rules: [feature-collapse-out-of-line], owner: me, reason: test, expires: 2999-01-01}}\n"
    )
    command = [
        sys.executable, "-m", "sanitize", "gate", "models:/suspect/1", "--policy", str(tmp_path / "strict.yaml"),
        "--reference", "models:/clean/1", "--reference", "models:/clean/2", "--detector-set", "steps=1", "--quiet",
        "--device", "cpu", "--format", "json", "--tracking-uri", registry.uri, "--output", str(tmp_path / "a.xml"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["outputs"]["gate"], report["outputs"]["remembered"]) == ("waived", True)
    assert done.stderr == ""
    assert "waived by me" in (tmp_path / "a.xml").read_text()
