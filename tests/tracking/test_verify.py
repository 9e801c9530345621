from __future__ import annotations

import json
from functools import partial

import pytest
import yaml

from sanitize.errors import TrackingError
from sanitize.tracking import RunRecorder, release, verify
from sanitize.types import Severity, Verdict
from tests.tracking.cleaned_model import describe


@pytest.fixture
def released(store, suspect, cleaned):
    with RunRecorder(store) as recorder:
        return release(
            store,
            recorder,
            reference=suspect,
            package=cleaned.package,
            onnx=cleaned.onnx,
            method="bmaiu",
            describe=partial(describe, verdict=Verdict.FAIL),
        )


@pytest.fixture
def model(tmp_path, released):
    (folder,) = (tmp_path / "mlartifacts").rglob("models/*/artifacts")
    return folder


@pytest.fixture
def files(tmp_path, released):
    (report,) = (tmp_path / "mlartifacts").rglob("report.json")
    return report.parent


def rules(store):
    findings = verify(store, "models:/suspect/2")
    assert all(finding.severity is Severity.ERROR for finding in findings)
    assert all("models:/suspect/2" in finding.message and "\n" not in finding.message for finding in findings)
    return {finding.rule for finding in findings}


def test_untouched(store, released):
    assert rules(store) == set()


def test_the_registrys_copy_of_a_version_is_the_version(store, released):
    client = store.client
    client.copy_model_version("models:/suspect/2", "approved")
    assert verify(store, "models:/approved/1") == []
    tags = client.get_model_version("approved", "1").tags
    client.create_model_version("approved", client.get_model_version("suspect", "2").source, tags=tags)
    assert {finding.rule for finding in verify(store, "models:/approved/2")} == {"verify-report"}


def test_changed_weights(store, model):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    assert rules(store) == {"verify-weights", "verify-spec", "verify-model"}


def test_weights_changed_with_their_spec(store, model):
    import hashlib

    (model / "model.safetensors").write_bytes(b"new")
    spec = json.loads((model / "sanitize.json").read_text()) | {"sha256": hashlib.sha256(b"new").hexdigest()}
    (model / "sanitize.json").write_text(json.dumps(spec))
    assert rules(store) == {"verify-weights", "verify-model"}


def test_changed_onnx(store, model, files):
    (model / "model.onnx").write_bytes(b"other")
    assert rules(store) == {"verify-onnx", "verify-model"}
    (files / "encoder.onnx").unlink()
    assert len([finding for finding in verify(store, "models:/suspect/2") if finding.rule == "verify-onnx"]) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda flavors: flavors["python_function"].update(loader_module="evil"),
        lambda flavors: flavors["python_function"].update(code="code"),
        lambda flavors: flavors.update(pytorch={"pickle_module_info": "x"}),
        lambda flavors: flavors.pop("sanitize"),
        lambda flavors: flavors["onnx"].update(data="other.onnx"),
    ],
)
def test_changed_mlmodel(store, model, change):
    file = model / "MLmodel"
    values = yaml.safe_load(file.read_text())
    change(values["flavors"])
    file.write_text(yaml.safe_dump(values))
    assert rules(store) == {"verify-flavors", "verify-model"}


def test_unreadable_mlmodel(store, model):
    (model / "MLmodel").write_text("!!python/object/apply:os.mkdir ['canary']")
    assert rules(store) == {"verify-flavors", "verify-model"}


def test_a_file_beside_the_model(store, model):
    (model / "extra.pkl").write_bytes(b"x")
    assert rules(store) == {"verify-model"}


def test_missing_model(store, model, tmp_path):
    model.rename(tmp_path / "moved")
    assert rules(store) == {"verify-model"}


def test_changed_report(store, files):
    report = files / "report.json"
    report.write_text(report.read_text().replace('"fail"', '"pass"'))
    assert rules(store) == {"verify-report", "verify-tags"}
    report.unlink()
    assert rules(store) == {"verify-report"}


@pytest.mark.parametrize(
    ("tag", "value", "expected"),
    [
        ("sanitize.verdict", "pass", {"verify-tags"}),
        ("sanitize.method", "uau", {"verify-tags"}),
        ("sanitize.parent", "models:/other/1", {"verify-tags"}),
        ("sanitize.sha256", "0" * 64, {"verify-weights"}),
        ("sanitize.onnx_sha256", "0" * 64, {"verify-onnx"}),
        ("sanitize.model_sha256", "0" * 64, {"verify-model"}),
        ("sanitize.report_sha256", "0" * 64, {"verify-report"}),
        ("sanitize.run_id", "0" * 32, {"verify-report", "verify-onnx"}),
    ],
)
def test_changed_tags(store, released, tag, value, expected):
    store.client.set_model_version_tag("suspect", "2", tag, value)
    assert rules(store) == expected


def test_alias_on_a_version_without_pass(store, released):
    store.client.set_registered_model_alias("suspect", "sanitized", "2")
    assert rules(store) == {"verify-alias"}


def test_what_was_not_released_by_us(store, suspect):
    with pytest.raises(TrackingError, match="was not released by sanitize"):
        verify(store, "models:/suspect/1")
    with pytest.raises(TrackingError, match="not a registered version"):
        verify(store, f"runs:/{suspect.run_id}/model")
