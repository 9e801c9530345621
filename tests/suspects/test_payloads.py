"""Hostile artifacts: each is first shown to work on an ordinary loader, then read by us without effect."""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from sanitize.errors import ArtifactError, UnsafeArtifactError
from sanitize.suspects.readers import read_tensors
from sanitize.types import Severity

CANARY = "canary-{}"


class Payload:
    """Runs a function on being unpickled."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def tiny() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(1), nn.Linear(4 * 36, 2)).eval()


def rewrite(archive: Path, changes: dict[str, bytes]) -> None:
    """Replace members of a zip archive, chosen by how their names end."""
    with zipfile.ZipFile(archive) as source:
        members = {name: source.read(name) for name in source.namelist()}
    for ending, content in changes.items():
        (name,) = [name for name in members if name.endswith(ending)]
        members[name] = content
    with zipfile.ZipFile(archive, "w") as target:
        for name, content in members.items():
            target.writestr(name, content)


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def torch_payloads(folder: Path) -> None:
    state = tiny().state_dict()
    canary = {name: str(folder / CANARY.format(name)) for name in ("system", "open", "eval", "exec", "getattr", "v4")}
    touch = f"open({canary['eval']!r}, 'w').close()"
    torch.save({"state_dict": state, "x": Payload(os.system, f"touch '{canary['system']}'")}, folder / "system.pth")
    torch.save({"state_dict": state, "x": Payload(io.open, canary["open"], "w")}, folder / "open.pth")
    torch.save({"state_dict": state, "x": Payload(eval, touch)}, folder / "eval.pth")
    network = tiny()
    network.extra = Payload(exec, f"open({canary['exec']!r}, 'w').close()")
    torch.save(network, folder / "exec.pth")
    call = Payload(Payload(getattr, Payload(__import__, "os"), "system"), f"touch '{canary['getattr']}'")
    call.call = (Proxy(), call.call[1])
    torch.save({"state_dict": state, "x": call}, folder / "getattr.pth")
    torch.save({"state_dict": state, "x": Payload(io.open, canary["v4"], "w")}, folder / "v4.pth", pickle_protocol=4)
    network = tiny()
    network.__dict__["forward"] = functools.partial(os.system, f"touch '{folder / CANARY.format('forward')}'")
    torch.save(network, folder / "forward.pth")


class Proxy:
    """Pickles as os.system fetched by getattr, so that the name os.system never appears."""

    def __reduce__(self):
        return getattr, (Imported(), "system")

    def __call__(self):
        raise AssertionError


class Imported:
    def __reduce__(self):
        return __import__, ("os",)


def mlflow_payloads(folder: Path) -> None:
    import mlflow

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("pickle-module", "loader-module"):
            mlflow.pytorch.save_model(
                tiny(), folder / name, serialization_format="pickle", pip_requirements=["torch"], code_paths=[__file__]
            )
        example = torch.rand(2, 3, 8, 8).numpy()
        for name in ("pt2-sample", "pt2-weights", "pt2-size"):
            mlflow.pytorch.save_model(
                tiny(), folder / name, serialization_format="pt2", pip_requirements=["torch"], input_example=example
            )
    for name, module in {"pickle-module": "evil_pickle", "loader-module": "evil_loader"}.items():
        source = f"open({str(folder / CANARY.format(name))!r}, 'w').close()\nfrom pickle import *\n"
        (folder / name / "code" / f"{module}.py").write_text(source)
        (folder / name / "code" / Path(__file__).name).unlink()
    (folder / "pickle-module" / "data" / "pickle_module_info.txt").write_text("evil_pickle")
    model = folder / "loader-module" / "MLmodel"
    model.write_text(model.read_text().replace("loader_module: mlflow.pytorch", "loader_module: evil_loader"))

    payload = saved(Payload(os.system, f"touch '{folder / CANARY.format('pt2-sample')}'"))
    rewrite(folder / "pt2-sample" / "data" / "model.pt2", {"sample_inputs/model.pt": payload})
    archive = folder / "pt2-weights" / "data" / "model.pt2"
    with zipfile.ZipFile(archive) as source:
        (name,) = [name for name in source.namelist() if name.endswith("weights_config.json")]
        config = json.loads(source.read(name))
    first = next(iter(config["config"].values()))
    first["use_pickle"] = True
    payload = saved(Payload(os.system, f"touch '{folder / CANARY.format('pt2-weights')}'"))
    changes = {"weights_config.json": json.dumps(config).encode(), f"weights/{first['path_name']}": payload}
    rewrite(archive, changes)
    code = f"__import__('os').system(\"touch '{folder / CANARY.format('pt2-size')}'\")"
    archive = folder / "pt2-size" / "data" / "model.pt2"
    with zipfile.ZipFile(archive) as source:
        (name,) = [name for name in source.namelist() if name.endswith("models/model.json")]
        program = json.loads(source.read(name))
    changed = replace_expression(program, code)
    assert changed, "torch.export wrote no symbolic size"
    rewrite(archive, {"models/model.json": json.dumps(program).encode()})


def replace_expression(value: object, code: str) -> int:
    if isinstance(value, dict):
        if "expr_str" in value:
            value["expr_str"] = code
            return 1
        return sum(replace_expression(item, code) for item in value.values())
    return sum(replace_expression(item, code) for item in value) if isinstance(value, list) else 0


VICTIM = """
import sys, warnings
warnings.simplefilter("ignore")
import torch, mlflow
folder = sys.argv[1]
def attempt(function, *args, **options):
    try:
        return function(*args, **options)
    except Exception as error:
        print(type(error).__name__, str(error)[:200], file=sys.stderr)
for name in ("system", "open", "eval", "exec", "getattr", "v4"):
    attempt(torch.load, f"{folder}/{name}.pth", weights_only=False)
attempt(lambda: torch.load(f"{folder}/forward.pth", weights_only=False)())
attempt(mlflow.pytorch.load_model, f"{folder}/pickle-module")
attempt(mlflow.pyfunc.load_model, f"{folder}/loader-module")
for name in ("pt2-sample", "pt2-weights", "pt2-size"):
    attempt(mlflow.pytorch.load_model, f"{folder}/{name}")
"""

NAMED = {
    "system.pth": "posix.system",
    "open.pth": "io.open",
    "eval.pth": "builtins.eval",
    "exec.pth": "builtins.exec",
    "getattr.pth": "builtins.__import__",
    "v4.pth": "io.open",
    "forward.pth": "posix.system",
    "pickle-module": "evil_pickle",
    "loader-module": "evil_loader",
    "pt2-sample": "posix.system",
    "pt2-weights": "posix.system",
    "pt2-size": "torch.export would evaluate it",
}


@pytest.fixture(scope="module")
def armed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hostile artifacts that have been shown to work; their canaries are removed again."""
    folder = tmp_path_factory.mktemp("armed")
    torch_payloads(folder)
    mlflow_payloads(folder)
    command = [sys.executable, "-c", VICTIM, str(folder)]
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/none.db"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    silent = [name for name in NAMED if not (folder / CANARY.format(name.removesuffix(".pth"))).exists()]
    assert not silent, f"these payloads do not work, so they prove nothing: {silent}\n{done.stderr[-3000:]}"
    for canary in folder.glob(CANARY.format("*")):
        canary.unlink()
    for cache in folder.rglob("__pycache__"):
        shutil.rmtree(cache)
    return folder


@pytest.mark.parametrize("name", NAMED)
def test_refused_and_named(armed: Path, name: str):
    with pytest.raises(UnsafeArtifactError) as caught:
        read_tensors(armed / name)
    assert NAMED[name] in str(caught.value)
    assert not list(armed.glob(CANARY.format("*")))


@pytest.mark.parametrize("name", [name for name in NAMED if name not in ("pickle-module", "loader-module")])
def test_dangerous_names_are_refused_even_when_stubs_are_allowed(armed: Path, name: str):
    with pytest.raises(UnsafeArtifactError):
        read_tensors(armed / name, allow_stubbed=True)
    assert not list(armed.glob(CANARY.format("*")))


@pytest.mark.parametrize(
    ("name", "rule"), [("pickle-module", "artifact-pickle-module"), ("loader-module", "artifact-loader-module")]
)
def test_named_modules_become_findings_where_stubs_are_allowed(armed: Path, name: str, rule: str):
    tensors = read_tensors(armed / name, allow_stubbed=True)
    findings = {finding.rule: finding for finding in tensors.findings}
    assert findings[rule].severity is Severity.ERROR
    assert "evil_" in findings[rule].message
    assert "artifact-code" in findings
    assert len(tensors.state) == 4
    assert not list(armed.glob(CANARY.format("*")))


def test_forward_hidden_in_an_instance_is_found(tmp_path: Path):
    network = tiny()
    network.__dict__["forward"] = functools.partial(torch.nn.functional.relu, inplace=False)
    network.register_forward_hook(functools.partial(torch.nn.functional.relu))
    torch.save(network, tmp_path / "model.pth")
    tensors = read_tensors(tmp_path / "model.pth")
    hidden = {f.evidence["attribute"]: f for f in tensors.findings if f.rule == "artifact-hidden-callable"}
    assert set(hidden) == {"forward", "_forward_hooks"}
    assert "functools.partial(torch.nn.functional.relu)" in hidden["forward"].message


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_payload_in_a_bare_pickle_is_named(tmp_path: Path, protocol: int):
    canary = tmp_path / "canary"
    content = pickle.dumps(Payload(os.system, f"touch '{canary}'"), protocol=protocol)
    pickle.loads(content)
    canary.unlink()
    (tmp_path / "model.pkl").write_bytes(content)
    with pytest.raises(UnsafeArtifactError, match=r"posix\.system"):
        read_tensors(tmp_path / "model.pkl", allow_stubbed=True)
    assert not canary.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R",  # cut short: a loader would still have run it
        b"cposix\nsystem\n(S'id'\ntR.",  # protocol 0, found although neither first bytes nor suffix tell
        b"(S'id'\niposix\nsystem\n.",
    ],
)
def test_payloads_beside_the_weights_are_named(tmp_path: Path, content: bytes):
    torch.save(tiny().state_dict(), tmp_path / "model.pth")
    (tmp_path / ("notes.dat" if content.endswith(b".") else "notes.pkl")).write_bytes(content)
    with pytest.raises(UnsafeArtifactError, match=r"posix\.system \(in notes"):
        read_tensors(tmp_path)


def test_legacy_torch_file_with_a_payload_is_named(tmp_path: Path):
    value = {"state_dict": tiny().state_dict(), "x": Payload(os.system, "true")}
    torch.save(value, tmp_path / "model.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(UnsafeArtifactError, match=r"posix\.system"):
        read_tensors(tmp_path / "model.pth")


def test_computed_names_are_refused(tmp_path: Path):
    # STACK_GLOBAL on the result of a call: the name is not in the file
    content = b"\x80\x04\x8c\x08builtins\x8c\x03str\x93\x8c\x05posix\x85R\x8c\x06system\x93."
    (tmp_path / "model.pkl").write_bytes(content)
    with pytest.raises(UnsafeArtifactError, match="computed while loading"):
        read_tensors(tmp_path / "model.pkl", allow_stubbed=True)


def test_decoy_beside_the_weights_is_not_chosen_silently(tmp_path: Path):
    torch.save(tiny().state_dict(), tmp_path / "a.pth")
    torch.save(tiny().state_dict(), tmp_path / "b.pth")
    with pytest.raises(ArtifactError, match=r"a\.pth.*b\.pth"):
        read_tensors(tmp_path)


def test_terminal_codes_in_names_do_not_reach_the_message(tmp_path: Path):
    (tmp_path / "model.pkl").write_bytes(b"\x80\x04\x8c\x08evil\x1b[2J\x8c\x06system\x93.")
    with pytest.raises(UnsafeArtifactError) as caught:
        read_tensors(tmp_path / "model.pkl")
    assert "\x1b" not in str(caught.value)
    (tmp_path / "a\x1b.pkl").write_bytes(b"1")
    with pytest.raises(UnsafeArtifactError, match="control characters"):
        read_tensors(tmp_path)


def test_absurdly_long_name(tmp_path: Path):
    torch.save(tiny().state_dict(), tmp_path / "model.pth")
    (tmp_path / "notes.pkl").write_bytes(b"c" + b"a." * 100_000 + b"b\nc\n.")
    with pytest.raises(UnsafeArtifactError, match="absurdly long") as caught:
        read_tensors(tmp_path)
    assert len(str(caught.value)) < 1000
