from __future__ import annotations

import json

import pytest
import yaml
from pydantic import ValidationError

from sanitize.errors import ConfigError, TrackingError
from sanitize.tracking import Binding, bind, binding_of

pytestmark = pytest.mark.usefixtures("suspect")
KNOWN = Binding(data="digits#0:140", architecture="small-cnn", normalization="none", image_size=32)


def test_what_was_bound_comes_back(store):
    assert binding_of(store, "suspect") is None
    bind(store, "suspect", KNOWN)
    assert binding_of(store, "suspect") == KNOWN
    newer = KNOWN.model_copy(update={"image_size": 64})
    bind(store, "suspect", newer)
    assert binding_of(store, "suspect") == newer


def test_triggers_come_back_with_their_pictures(store, tmp_path):
    folder = tmp_path / "triggers"
    folder.mkdir()
    (folder / "patch.png").write_bytes(b"a picture")
    (folder / "badnets.yaml").write_text("image: patch.png\ntarget: 0\n")
    (tmp_path / "outside.png").write_bytes(b"another")
    (folder / "blend.yaml").write_text("image: ../outside.png\nmode: blend\ntarget: 1\n")
    bind(store, "suspect", KNOWN, [folder / "badnets.yaml", folder / "blend.yaml"])

    binding = binding_of(store, "suspect")
    assert [trigger["name"] for trigger in binding.triggers] == ["badnets", "blend"]
    first, second = binding.trigger_paths
    assert yaml.safe_load(first.read_text()) == binding.triggers[0]
    assert (first.parent / "patch.png").read_bytes() == b"a picture"
    assert (second.parent / binding.triggers[1]["image"]).read_bytes() == b"another"


def test_triggers_without_files(store, tmp_path):
    bind(store, "suspect", KNOWN.model_copy(update={"triggers": [{"pattern": [[1.0]], "target": 3}]}))
    binding = binding_of(store, "suspect", tmp_path / "binding")
    assert yaml.safe_load(binding.trigger_paths[0].read_text()) == {"pattern": [[1.0]], "target": 3}


@pytest.mark.parametrize("text", ["- a list", "a: [", None])
def test_bad_trigger_files(store, tmp_path, text):
    if text is not None:
        (tmp_path / "trigger.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"trigger\.yaml"):
        bind(store, "suspect", KNOWN, [tmp_path / "trigger.yaml"])


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("train.parquet", "{here}/train.parquet"),
        ("train.parquet#:500", "{here}/train.parquet#:500"),
        ("images#~20", "{here}/images#~20"),
        ("a#b/images", "{here}/a#b/images"),
        ("/data/x.npz", "/data/x.npz"),
        ("digits", "digits"),
        ("digits#0:140", "digits#0:140"),
        ("digits-of-mine", "{here}/digits-of-mine"),
        ("torchvision:CIFAR10", "torchvision:CIFAR10"),
        ("runs:/abc/images#::2", "runs:/abc/images#::2"),
        ("models:/scraped/1", "models:/scraped/1"),
    ],
)
def test_paths_are_stored_absolute(given, stored, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    binding = Binding(data=given, architecture="nets.py:encoder").with_absolute_paths()
    assert binding.data == stored.format(here=tmp_path)
    assert binding.architecture == f"{tmp_path}/nets.py:encoder"


def test_unknown_keys_are_refused():
    with pytest.raises(ValidationError):
        Binding(dataset="digits")


def test_no_such_model(store):
    for act in (lambda: bind(store, "other", KNOWN), lambda: binding_of(store, "other")):
        with pytest.raises(TrackingError, match="there is no model 'other'"):
            act()


def refused(store, match):
    with pytest.raises(TrackingError, match=match) as caught:
        binding_of(store, "suspect")
    assert "bind again with `sanitize bind models:/suspect`" in str(caught.value)


def retag(store, value):
    store.client.set_registered_model_tag("suspect", "sanitize.binding", value)


def tag_of(store, name="suspect"):
    return store.client.get_registered_model(name).tags["sanitize.binding"]


def test_an_edited_record_is_refused(store, tmp_path):
    bind(store, "suspect", KNOWN)
    (record,) = (tmp_path / "mlartifacts").rglob("binding.json")
    values = json.loads(record.read_text())
    values["binding"]["data"] = "/poisoned"
    record.write_text(json.dumps(values))
    refused(store, "its record was changed")


def test_an_edited_trigger_is_refused(store, tmp_path):
    bind(store, "suspect", KNOWN.model_copy(update={"triggers": [{"target": 3}]}))
    (spec,) = (tmp_path / "mlartifacts").rglob("trigger.yaml")
    spec.write_text("target: 4")
    refused(store, r"trigger\.yaml was changed")


def test_a_missing_record_is_refused(store, tmp_path):
    bind(store, "suspect", KNOWN)
    (record,) = (tmp_path / "mlartifacts").rglob("binding.json")
    record.unlink()
    with pytest.raises(TrackingError, match=r"could not copy the artifacts of runs:/.*/binding\.json"):
        binding_of(store, "suspect")


@pytest.mark.parametrize("value", ["", "nonsense", "0123456789abcdef0123456789abcdef:00"])
def test_a_tag_that_leads_nowhere_is_refused(store, value):
    bind(store, "suspect", KNOWN)
    retag(store, value)
    refused(store, "there is no run")


def test_a_record_elsewhere_is_refused(store, suspect):
    retag(store, f"{suspect.run_id}:{'0' * 64}")
    refused(store, "is not in the experiment|there is no run")
    bind(store, "suspect", KNOWN)
    retag(store, f"{suspect.run_id}:{'0' * 64}")
    refused(store, "is not in the experiment")


def test_the_record_of_another_model_is_refused(store):
    store.client.create_registered_model("mine")
    bind(store, "mine", KNOWN)
    retag(store, tag_of(store, "mine"))
    refused(store, "its record is that of models:/mine")


def test_an_older_record_is_refused(store):
    bind(store, "suspect", KNOWN.model_copy(update={"data": "/poisoned"}))
    old = tag_of(store)
    bind(store, "suspect", KNOWN)
    retag(store, old)
    refused(store, "is older than the latest binding")


def test_a_deleted_record_is_refused(store):
    run_id = bind(store, "suspect", KNOWN)
    store.client.delete_run(run_id)
    refused(store, "was deleted")
