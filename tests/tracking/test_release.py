from __future__ import annotations

import json
import multiprocessing
import os
from functools import partial

import mlflow
import numpy as np
import pytest

from sanitize.errors import ExportError, TrackingError
from sanitize.tracking import RunRecorder, Store, register_model_file, release, target_name, verify
from sanitize.tracking.store import ModelReference
from sanitize.types import Verdict
from tests.tracking.cleaned_model import describe

BEFORE_VERSION = ["files", "model", "documents", "verify", "version"]
AFTER_VERSION = ["lineage", "alias"]


pytestmark = pytest.mark.usefixtures("suspect")


def run_release(store, cleaned, uri="models:/suspect/1", verdict=Verdict.PASS, **options):
    recorder = options.pop("recorder", None) or RunRecorder(store)
    options = {"method": "bmaiu", "describe": partial(describe, verdict=verdict)} | options
    with recorder:
        return release(
            store, recorder, reference=store.resolve(uri), package=cleaned.package, onnx=cleaned.onnx, **options
        )


def test_pass_gets_version_tags_alias_and_lineage(store, cleaned):
    released = run_release(store, cleaned, policy="strict")

    assert (released.model_uri, released.alias) == ("models:/suspect/2", "sanitized")
    client = store.client
    version = client.get_model_version_by_alias("suspect", "sanitized")
    assert version.version in (2, "2")
    assert version.tags["sanitize.parent"] == "models:/suspect/1"
    assert version.tags["sanitize.verdict"] == "pass"
    assert version.tags["sanitize.method"] == "bmaiu"
    assert version.tags["sanitize.policy"] == "strict"
    assert version.tags["sanitize.run_id"] == version.run_id
    assert version.description == "**pass** models:/suspect/2"
    assert client.get_model_version("suspect", "1").tags["sanitize.cleaned"] == "models:/suspect/2"
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["sanitize.model_uri"] == "models:/suspect/2"
    assert run.data.metrics["after/clean_accuracy"] == 0.97
    assert [output.model_id for output in run.outputs.model_outputs] == [released.model_id]
    logged = client.get_logged_model(released.model_id)
    assert [str(link["version"]) for link in json.loads(logged.tags["mlflow.modelVersions"])] == ["2"]
    assert {metric.key for metric in logged.metrics} == {"after/clean_accuracy"}
    assert verify(store, "models:/suspect@sanitized") == []


def test_the_suspect_names_all_its_results_and_the_run_its_settings(store, cleaned):
    first, second = run_release(store, cleaned), run_release(store, cleaned, method="uau")
    suspect = store.client.get_model_version("suspect", "1")
    assert suspect.tags["sanitize.cleaned"] == f"{first.model_uri}, {second.model_uri}"
    run = store.client.get_run(store.client.get_model_version("suspect", "3").run_id)
    assert (run.data.tags["sanitize.method"], run.data.tags["sanitize.policy"]) == ("uau", "default")


@pytest.mark.parametrize("verdict", [Verdict.FAIL, Verdict.INCONCLUSIVE])
def test_without_pass_the_version_is_registered_and_the_alias_stays(store, cleaned, verdict):
    passed = run_release(store, cleaned)
    released = run_release(store, cleaned, verdict=verdict)

    assert released.alias is None
    assert store.resolve("models:/suspect/3").version == "3"
    assert store.resolve("models:/suspect@sanitized").pinned_uri == passed.model_uri


def test_mlflow_loads_it(store, store_uri, cleaned, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    released = run_release(store, cleaned)
    images = np.random.default_rng(0).random((4, 3, 8, 8), dtype=np.float32)
    mlflow.set_tracking_uri(store_uri)
    try:
        model = mlflow.pyfunc.load_model(released.model_uri)
        by_name, plain = model.predict({"images": images}), model.predict(images)
        graph = mlflow.onnx.load_model(f"models:/{released.model_id}")
    finally:
        mlflow.set_tracking_uri(None)
    np.testing.assert_allclose(by_name["features"], images.mean((2, 3)), rtol=1e-5)
    np.testing.assert_allclose(plain["features"], by_name["features"])
    assert graph.graph.output[0].name == "features"
    signature = model.metadata.signature
    assert signature.inputs.to_dict()[0]["tensor-spec"] == {"dtype": "float32", "shape": (-1, 3, 8, 8)}
    assert signature.outputs.to_dict()[0]["name"] == "features"


def test_stored_files_keep_their_bytes(store, cleaned, tmp_path):
    released = run_release(store, cleaned)
    folder = store.download(store.resolve(released.model_uri), tmp_path / "model")
    assert (folder / "model.onnx").read_bytes() == cleaned.onnx.read_bytes()
    for name in ("model.safetensors", "sanitize.json"):
        assert (folder / name).read_bytes() == (cleaned.package / name).read_bytes()
    assert store.artifact(released.onnx_uri, tmp_path / "onnx").read_bytes() == cleaned.onnx.read_bytes()
    assert not [file for file in folder.rglob("*") if file.suffix in {".pkl", ".pth", ".pickle"}]


class Crash(Exception):
    pass


def crash_at(where):
    def step(name):
        if name == where:
            raise Crash(name)

    return step


@pytest.mark.parametrize("where", BEFORE_VERSION)
def test_an_error_before_the_version_leaves_nothing(store, cleaned, where):
    with pytest.raises(Crash):
        run_release(store, cleaned, step=crash_at(where))

    assert len(store.versions("suspect")) == 1
    assert not store.client.get_registered_model("suspect").aliases
    experiment = store.experiment("sanitize")
    assert not store.client.search_logged_models([experiment])
    (run,) = store.client.search_runs([experiment])
    assert run.info.status == "FAILED"
    assert run.data.tags["sanitize.error"] == f"Crash: {where}"


# A process of its own that can die; this way it is forked from one that has everything imported.
SPAWN = multiprocessing.get_context("forkserver")
SPAWN.set_forkserver_preload(["sanitize.tracking", "mlflow.onnx", "onnx"])


def release_and_die(store_uri, package, onnx, where):
    store = Store(store_uri)
    with RunRecorder(store, tags={"mine": "yes"}) as recorder:
        release(
            store,
            recorder,
            reference=store.resolve("models:/suspect/1"),
            package=package,
            onnx=onnx,
            method="bmaiu",
            describe=describe,
            step=lambda name: name == where and os._exit(9),
        )


@pytest.mark.parametrize("where", BEFORE_VERSION + AFTER_VERSION)
def test_killed_anywhere_then_resumed(store, store_uri, cleaned, where):
    child = SPAWN.Process(target=release_and_die, args=(store_uri, cleaned.package, cleaned.onnx, where))
    child.start()
    child.join()
    assert child.exitcode == 9
    assert len(store.versions("suspect")) == (1 if where in BEFORE_VERSION else 2)
    assert not store.client.get_registered_model("suspect").aliases

    (run,) = store.client.search_runs([store.experiment("sanitize")], "tags.mine = 'yes'")
    assert run.info.status == "RUNNING"
    released = run_release(store, cleaned, recorder=RunRecorder.resume(store, run.info.run_id))
    assert (released.model_uri, released.alias) == ("models:/suspect/2", "sanitized")
    assert len(store.versions("suspect")) == 2
    assert store.client.get_run(run.info.run_id).info.status == "FINISHED"
    assert len(store.client.get_run(run.info.run_id).outputs.model_outputs) >= 1
    assert verify(store, "models:/suspect/2") == []


def test_another_process_takes_the_number(store, cleaned, suspect_file):
    def race(name):
        if name == "version":
            register_model_file(store, suspect_file, "suspect")

    released = run_release(store, cleaned, step=race)
    assert released.model_uri == "models:/suspect/3"
    assert released.report.model_uri == "models:/suspect/3"
    assert store.client.get_model_version("suspect", "3").description.endswith("models:/suspect/3")
    assert verify(store, "models:/suspect/3") == []


def test_a_deleted_version_does_not_confuse_the_number(store, cleaned):
    run_release(store, cleaned)
    store.client.delete_model_version("suspect", "2")
    released = run_release(store, cleaned)
    assert released.report.model_uri == released.model_uri
    assert verify(store, released.model_uri) == []


def test_wrong_package_is_refused_before_anything_is_registered(store, cleaned):
    (cleaned.package / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ExportError, match="Write the package again"):
        run_release(store, cleaned)
    assert len(store.versions("suspect")) == 1


def test_a_changed_file_in_the_store_is_noticed(store, cleaned, tmp_path):
    def corrupt(name):
        if name == "verify":
            (file,) = (tmp_path / "mlartifacts").rglob("models/*/artifacts/model.onnx")
            file.write_bytes(file.read_bytes()[:-1] + b"x")

    with pytest.raises(TrackingError, match="came back changed"):
        run_release(store, cleaned, step=corrupt)
    assert len(store.versions("suspect")) == 1


def test_subject_outside_of_the_registry_gets_a_name(store, cleaned):
    source = store.resolve("models:/suspect/1")
    uri = f"runs:/{source.run_id}/model/suspect.pth"
    released = run_release(store, cleaned, uri=uri, describe=partial(describe, subject=uri))
    assert released.model_uri == f"models:/suspect.pth-{source.run_id[:8]}/1"
    assert store.client.get_model_version(released.model_uri.split("/")[1], "1").tags["sanitize.parent"] == uri
    assert verify(store, released.model_uri) == []
    run_id = "a" * 32
    logged = ModelReference(uri=f"models:/m-{run_id}", source_uri="s3://x", model_id=f"m-{run_id}")
    assert target_name(logged) == "model-aaaaaaaa"
    assert target_name(logged, "mine") == "mine"
    with pytest.raises(TrackingError, match="cannot be the name"):
        target_name(logged, "a/b")


def test_a_new_name_is_removed_when_the_release_fails(store, cleaned, monkeypatch):
    monkeypatch.setattr(store.client, "create_model_version", lambda *_, **__: (_ for _ in ()).throw(Crash("no")))
    with pytest.raises(Crash):
        run_release(store, cleaned, name="fresh")
    assert not store.client.search_registered_models("name = 'fresh'")


def test_mlmodel_has_no_path_of_this_machine(store, cleaned, tmp_path):
    released = run_release(store, cleaned)
    folder = store.download(store.resolve(released.model_uri), tmp_path / "model")
    text = (folder / "MLmodel").read_text()
    assert str(tmp_path) not in text
    assert json.loads((folder / "sanitize.json").read_text())["architecture"] == "small-cnn"
