"""What the defender knows about a registered model: its data, architecture and normalization.

The record is an artifact of a run in the experiment `EXPERIMENT`. The tag on the registered model only points at it,
with its digest: whoever may edit a suspect may edit its tags, so a tag that does not lead to the latest matching record
is refused.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import re
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from sanitize.errors import ConfigError, TrackingError
from sanitize.tracking.digests import files_in, sha256_of
from sanitize.tracking.faults import is_absent, tracking_errors
from sanitize.tracking.intake import intake_run
from sanitize.tracking.store import Store, literal
from sanitize.types import ModelKind

EXPERIMENT = "sanitize-bindings"
BINDING_TAG = "sanitize.binding"
NAME_TAG = "sanitize.bound_model"
RECORD_FILE = "binding.json"
_NOT_A_PATH = re.compile(r"(digits($|#)|torchvision:|runs:/|models:/)")
_ROWS = re.compile(r"#(~\d+|[-\d]*:[-\d]*(:[-\d]*)?)$")  # the row selection that a DATA argument may end with
_FILE_KEYS = ("image", "pattern", "mask", "weights")  # of a trigger, that may name a file


class Binding(BaseModel):
    """What the defender bound to a registered model; everything is optional but the kind.

    Args:
        data: Clean images, as `sanitize.data.load_images` takes them.
        probe_data: Labelled images for the linear probe.
        test_data: Labelled images for the measurements.
        architecture: Built-in name, torchvision name, or the defender's ``file.py:function``.
        normalization: Name of a built-in normalization.
        image_size: Height and width in pixels.
        kind: ``encoder`` or ``classifier``.
        triggers: Specifications of known triggers, for evaluation only.
    """

    model_config = ConfigDict(extra="forbid")

    data: str | None = None
    probe_data: str | None = None
    test_data: str | None = None
    architecture: str | None = None
    normalization: str | None = None
    image_size: int | None = Field(default=None, gt=0)
    kind: ModelKind = "encoder"
    triggers: list[dict[str, Any]] = []

    _folder: Path | None = PrivateAttr(default=None)

    @property
    def trigger_paths(self) -> list[Path]:
        """One ``trigger.yaml`` for each trigger, beside its pictures; empty unless this comes from `binding_of`."""
        if self._folder is None:
            return []
        return [self._folder / "triggers" / str(number) / "trigger.yaml" for number in range(len(self.triggers))]

    def with_absolute_paths(self) -> Binding:
        """A copy whose relative paths do not depend on the current folder; URIs and built-in names stay."""
        values = {name: _absolute(getattr(self, name)) for name in ("data", "probe_data", "test_data")}
        architecture = self.architecture
        if architecture and ".py:" in architecture:
            file, _, function = architecture.rpartition(":")
            architecture = f"{Path(file).expanduser().absolute()}:{function}"
        return self.model_copy(update=values | {"architecture": architecture})


def bind(store: Store, name: str, binding: Binding, trigger_files: list[Path] | None = None) -> str:
    """Record what the defender knows about ``models:/name``; an older binding is replaced.

    Args:
        store: Where the model is registered.
        name: Registered model.
        binding: The knowledge; relative paths are stored absolute.
        trigger_files: Trigger specifications (YAML); stored with the pictures they name. They replace
            `binding.triggers`.

    Returns:
        Id of the run that holds the record.

    Raises:
        TrackingError: There is no such model, or the store refused.
        ConfigError: A trigger file is missing, is not YAML, or names a picture outside of its folder.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        triggers = [_collect(file, folder / "triggers" / str(i)) for i, file in enumerate(trigger_files or [])]
        if not triggers:
            triggers = binding.triggers
            for number, trigger in enumerate(triggers):
                _write_spec(trigger, folder / "triggers" / str(number))
        stored = binding.with_absolute_paths().model_copy(update={"triggers": triggers})
        files = {file: sha256_of(folder / file) for file in files_in(folder)}
        record = {"schema_version": 1, "model": name, "binding": stored.model_dump(mode="json"), "files": files}
        text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
        (folder / RECORD_FILE).write_text(text, encoding="utf-8")
        digest = sha256_of(folder / RECORD_FILE)
        with tracking_errors(f"could not bind to models:/{name}"):
            _require_model(store, name)
            with intake_run(
                store, EXPERIMENT, f"binding of {name}", {NAME_TAG: name, "sanitize.sha256": digest}
            ) as run:
                run_id = str(run.info.run_id)
                store.upload(run_id, folder)
                store.client.set_registered_model_tag(name, BINDING_TAG, f"{run_id}:{digest}")
    return run_id


def binding_of(store: Store, name: str, destination: Path | None = None) -> Binding | None:
    """What was bound to ``models:/name``; None when nothing was.

    Args:
        store: Where the model is registered.
        name: Registered model.
        destination: Where triggers are copied to; None means a folder that is removed when the process ends.

    Raises:
        TrackingError: There is no such model; or its tag leads to no record, to a foreign, changed or outdated one.
    """
    with tracking_errors(f"could not read the binding of models:/{name}"):
        tag = _require_model(store, name).tags.get(BINDING_TAG)
        if tag is None:
            return None
        run_id, _, digest = tag.partition(":")
        _check_run(store, name, run_id)
        with tempfile.TemporaryDirectory() as temporary:
            record_file = store.fetch_run_file(run_id, RECORD_FILE, Path(temporary))
            content = record_file.read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            raise _refusal(name, "its record was changed after it was written")
        try:
            record = json.loads(content)
            binding = Binding.model_validate(record["binding"])
            files: dict[str, str] = record["files"]
            if record["schema_version"] != 1 or record["model"] != name:
                raise _refusal(name, f"its record is that of models:/{record['model']}")
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            raise _refusal(name, f"its record cannot be read ({type(error).__name__})") from error
        if files and destination is None:
            destination = Path(tempfile.mkdtemp(prefix="sanitize-binding-"))
            atexit.register(shutil.rmtree, destination, ignore_errors=True)
        for file, expected in files.items():
            assert destination is not None
            copied = store.fetch_run_file(run_id, file, destination / PurePosixPath(file).parent)
            if sha256_of(copied) != expected:
                raise _refusal(name, f"{file} was changed after it was written")
    binding._folder = destination if files else None
    return binding


def _require_model(store: Store, name: str) -> Any:
    if not store.exists:
        raise TrackingError(f"there is no MLflow store at {store.shown}. Name another one with --tracking-uri.")
    try:
        return store.client.get_registered_model(name)
    except MlflowException as error:
        if is_absent(error):
            raise TrackingError(f"there is no model {name!r} in {store.shown}.") from error
        raise


def _check_run(store: Store, name: str, run_id: str) -> None:
    try:
        pointed: Run = store.client.get_run(run_id)
    except MlflowException as error:
        raise _refusal(name, f"there is no run {run_id[:40]!r}") from error
    experiment = store.client.get_experiment_by_name(EXPERIMENT)
    if experiment is None or pointed.info.experiment_id != experiment.experiment_id:
        raise _refusal(name, f"run {run_id} is not in the experiment {EXPERIMENT!r}")
    if pointed.info.lifecycle_stage != "active":
        raise _refusal(name, f"run {run_id} was deleted")
    newest = store.client.search_runs(
        [experiment.experiment_id],
        f"tags.`{NAME_TAG}` = {literal(name)} and attributes.status = 'FINISHED'",
        max_results=1,
        order_by=["attributes.start_time DESC"],
    )
    if newest and newest[0].info.run_id != run_id and newest[0].info.start_time > pointed.info.start_time:
        raise _refusal(name, f"run {run_id} is older than the latest binding, run {newest[0].info.run_id}")


def _refusal(name: str, why: str) -> TrackingError:
    return TrackingError(
        f"the tag {BINDING_TAG} of models:/{name} does not lead to what was bound: {why}. "
        f"Someone may have edited it; check, then bind again with `sanitize bind models:/{name}`."
    )


def _absolute(source: str | None) -> str | None:
    if source is None or _NOT_A_PATH.match(source):
        return source
    path, mark, rows = source.rpartition("#") if _ROWS.search(source) else (source, "", "")
    return f"{Path(path).expanduser().absolute()}{mark}{rows}"


def _write_spec(trigger: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "trigger.yaml").write_text(yaml.safe_dump(trigger, sort_keys=False), encoding="utf-8")


def _collect(file: Path, folder: Path) -> dict[str, Any]:
    try:
        trigger = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"could not read the trigger {file}: {error}") from error
    if not isinstance(trigger, dict):
        raise ConfigError(
            f"the trigger {file} must be a YAML mapping with keys such as image, size, position and target."
        )
    own_name = file.absolute().parent.name if file.stem == "trigger" else file.stem
    trigger = {"name": own_name, **trigger}  # what the name would be, had the file stayed where it was
    folder.mkdir(parents=True)
    for key in _FILE_KEYS:
        value = trigger.get(key)
        if isinstance(value, str) and (file.parent / value).is_file():
            picture = Path(value)
            if picture.is_absolute() or ".." in picture.parts:
                picture = Path(f"{key}{picture.suffix}")
                trigger[key] = picture.as_posix()
            (folder / picture).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.parent / value, folder / picture)
    (folder / "trigger.yaml").write_text(yaml.safe_dump(trigger, sort_keys=False), encoding="utf-8")
    return trigger
