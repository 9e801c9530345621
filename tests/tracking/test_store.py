from __future__ import annotations

import http.server
import os
import socket
import subprocess
import sys
import threading
import time

import mlflow
import pytest

from sanitize.errors import TrackingError
from sanitize.tracking import Store, deep_links, ui_command
from sanitize.tracking.digests import sha256_of


def test_every_form_finds_the_same_artifact(store, suspect, suspect_file, tmp_path):
    store.client.set_registered_model_alias("suspect", "candidate", "1")
    run = f"runs:/{suspect.run_id}/model"
    forms = ["models:/suspect/1", "models:/suspect@candidate", "models:/suspect/latest", run, f"{run}/suspect.pth"]
    for number, uri in enumerate(forms):
        reference = store.resolve(uri)
        copy = store.download(reference, tmp_path / f"copy{number}")
        assert copy.read_bytes() == suspect_file.read_bytes()
        assert reference.run_id == suspect.run_id
        assert reference.pinned_uri == ("models:/suspect/1" if uri.startswith("models:/") else uri)


def test_a_stock_logged_model_is_found_by_id_run_and_version(store, store_uri, tmp_path):
    mlflow.set_tracking_uri(store_uri)
    try:
        mlflow.set_experiment(experiment_id=store.experiment("theirs"))
        with mlflow.start_run() as run:
            (tmp_path / "theirs.py").write_text("pass")
            info = mlflow.pyfunc.log_model(
                name="net",
                loader_module="theirs",
                code_paths=[str(tmp_path / "theirs.py")],
                registered_model_name="theirs",
                pip_requirements=[],
            )
    finally:
        mlflow.set_tracking_uri(None)
    by_version = store.resolve("models:/theirs/1")
    assert by_version.model_id == info.model_id
    for uri in (f"models:/{info.model_id}", f"runs:/{run.info.run_id}/net", "models:/theirs/1"):
        folder = store.download(store.resolve(uri), tmp_path / uri.replace("/", "_"))
        assert (folder / "MLmodel").is_file()
        assert store.resolve(uri).model_id == info.model_id


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/suspct/1", "There is no model 'suspct'. Did you mean suspect?"),
        ("models:/suspect/7", "models:/suspect has no version 7. Versions of suspect: 1; aliases: first."),
        ("models:/suspect@best", "models:/suspect has no alias 'best'. Versions of suspect: 1; aliases: first."),
        ("models:/suspect", "names no version"),
        ("models:/suspect/Production", "names no version"),
        ("models:/suspect@first/1", "names no version"),
        ("models:/m-0123456789abcdef0123456789abcdef", "there is no logged model m-0123456789abcdef0123456789abcdef"),
        ("runs:/0123456789abcdef0123456789abcdef/model", "there is no run 0123456789abcdef0123456789abcdef"),
        ("runs:/abc", "names a run but no artifact"),
        ("models://host/suspect/1", "is not a URI of this kind"),
        ("models:suspect/1", "is not a URI of this kind"),
        ("suspect.pth", "is not a URI of this kind"),
        ("models:/", "is not a URI of this kind"),
        ("models:/suspect/1'; DROP TABLE runs", "names no version"),
    ],
)
def test_misses_are_one_clear_sentence(store, suspect, uri, message):
    store.client.set_registered_model_alias("suspect", "first", "1")
    with pytest.raises(TrackingError) as caught:
        store.resolve(uri)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_artifact_names_what_is_there(store, suspect):
    with pytest.raises(TrackingError, match=r"has no artifact 'modle'.* It has: model"):
        store.resolve(f"runs:/{suspect.run_id}/modle")


def test_registered_but_files_gone(store, suspect, tmp_path):
    (tmp_path / "mlartifacts").rename(tmp_path / "moved")
    with pytest.raises(TrackingError, match="could not copy the artifacts of models:/suspect/1: No such file"):
        store.download(suspect, tmp_path / "copy")


def test_a_download_is_a_copy(store, suspect, suspect_file, tmp_path):
    copy = store.download(suspect, tmp_path / "copy")
    copy.write_bytes(b"changed")
    assert store.download(suspect, tmp_path / "again").read_bytes() == suspect_file.read_bytes()


def test_links_in_a_local_store_stay_links(store, suspect, tmp_path):
    (live,) = (tmp_path / "mlartifacts").rglob("suspect.pth")
    (live.parent / "link").symlink_to("/etc/passwd")
    live.unlink()
    copy = store.download(suspect, tmp_path / "copy")
    assert copy == tmp_path / "copy"
    assert (copy / "link").is_symlink()


def test_a_pipe_in_a_local_store_is_refused(store, suspect, tmp_path):
    (live,) = (tmp_path / "mlartifacts").rglob("suspect.pth")
    os.mkfifo(live.parent / "pipe")
    with pytest.raises(TrackingError, match="device, pipe or socket"):
        store.download(suspect, tmp_path / "copy")


def test_asking_an_absent_store_makes_none(tmp_path):
    store = Store(f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(TrackingError, match="there is no MLflow store at"):
        store.resolve("models:/suspect/1")
    assert list(tmp_path.iterdir()) == []


def test_a_new_store_is_kept_in_its_folder(tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    folder = tmp_path / "work dir 100%"
    store = Store(f"sqlite:///{folder}/mlflow.db".replace("%", "%25"))
    experiment = store.client.get_experiment(store.experiment("sanitize"))
    assert experiment.artifact_location == (folder / "mlartifacts" / "sanitize").as_uri()
    assert store.client.get_experiment("0").artifact_location.startswith(folder.as_uri())
    assert [item.name for item in folder.iterdir()] == ["mlflow.db"]
    assert list(elsewhere.iterdir()) == []


def test_a_store_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingError, match="could not make the MLflow store"):
        Store(f"sqlite:///{tmp_path}/file/mlflow.db").client  # noqa: B018
    with pytest.raises(TrackingError, match="could not open the MLflow store"):
        (tmp_path / "mlflow.db").write_text("not a database, but long enough to be read as one" * 20)
        Store(f"sqlite:///{tmp_path}/mlflow.db").client  # noqa: B018


def test_the_default_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert Store().tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert Store("sqlite:///other.db").tracking_uri == f"sqlite:///{tmp_path}/other.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example")
    assert Store().tracking_uri == "http://mlflow.example"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("scheme", ["http", "https", "postgresql", "mysql+pymysql"])
def test_out_of_reach_is_fast_and_clear(scheme):
    before = dict(os.environ)
    started = time.monotonic()
    with pytest.raises(TrackingError, match="is out of reach") as caught:
        Store(f"{scheme}://ann:secret@127.0.0.1:{free_port()}/x").resolve("models:/suspect/1")
    assert time.monotonic() - started < 10
    assert "secret" not in str(caught.value)
    assert dict(os.environ) == before


class Answer(http.server.BaseHTTPRequestHandler):
    status, kind, wait = 200, "text/html", 0.0

    def do_GET(self):
        time.sleep(self.wait)
        self.send_response(self.status)
        self.send_header("Content-Type", self.kind)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"status": 401}, "refused access (HTTP 401); set MLFLOW_TRACKING_TOKEN"),
        ({"status": 403}, "refused access (HTTP 403)"),
        ({"status": 404}, "does not answer like an MLflow server (HTTP 404)"),
        ({"status": 200}, "does not answer like an MLflow server"),
        pytest.param({"wait": 6.0}, "is out of reach", marks=pytest.mark.slow),
    ],
)
def test_a_server_that_is_not_ours(answer, message):
    handler = type("Handler", (Answer,), answer)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    started = time.monotonic()
    try:
        with pytest.raises(TrackingError) as caught:
            Store(f"http://127.0.0.1:{server.server_port}").resolve("models:/suspect/1")
    finally:
        server.shutdown()
        server.server_close()
    assert message in str(caught.value)
    assert time.monotonic() - started < 15


def test_deleted_experiment_says_how_to_bring_it_back(store):
    store.client.delete_experiment(store.experiment("gone"))
    with pytest.raises(TrackingError, match="mlflow experiments restore -x"):
        store.experiment("gone")


def test_links():
    local, server = Store("sqlite:////srv/my store/mlflow.db"), Store("https://mlflow.example/team/")
    assert ui_command(local) == "mlflow ui --backend-store-uri 'sqlite:////srv/my store/mlflow.db'"
    assert ui_command(server) is None
    links = deep_links(server, experiment_id="3", run_id="abc", model_id="m-1", model_uri="models:/my model/2")
    assert links == {
        "run": "https://mlflow.example/team/#/experiments/3/runs/abc?workflowType=machine_learning",
        "logged_model": "https://mlflow.example/team/#/experiments/3/models/m-1?workflowType=machine_learning",
        "model": "https://mlflow.example/team/#/models/my%20model?workflowType=machine_learning",
        "version": "https://mlflow.example/team/#/models/my%20model/versions/2?workflowType=machine_learning",
    }
    assert deep_links(local, model_uri="models:/a/1")["version"].startswith(
        "http://127.0.0.1:5000/#/models/a/versions/1"
    )


def test_folder_digest_can_be_recomputed_in_a_shell(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/x", "b.txt", "a"):
        (tmp_path / name).write_text(name)
    command = "find . -type f | sed 's|^./||' | LC_ALL=C sort | xargs sha256sum | sha256sum"
    shell = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert sha256_of(tmp_path) == shell.stdout.split()[0]


def test_sanitize_starts_without_mlflow():
    program = "import sys, sanitize; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
