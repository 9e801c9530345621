"""One sanitization as an MLflow run: nested stages, buffered metrics, and an honest status whatever happens."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from types import FrameType, TracebackType
from typing import Any, Self

from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from sanitize.data.images import ImageSet
from sanitize.errors import TrackingError
from sanitize.tracking.datasets import log_input
from sanitize.tracking.faults import is_absent, tracking_errors
from sanitize.tracking.intake import origin_tags, terminate
from sanitize.tracking.links import run_url
from sanitize.tracking.metrics import MetricBuffer, now, write
from sanitize.tracking.store import Store

EXPERIMENT = "sanitize"
STAGE_TAG = "sanitize.stage"
ERROR_TAG = "sanitize.error"
INTERRUPTED_TAG = "sanitize.interrupted"
_PARENT_TAG = "mlflow.parentRunId"
_PARAMS_PER_CALL = 100
_VALUE_LENGTH = 6000
_TAG_LENGTH = 5000


class RunRecorder:
    """A parent run and its stages; a context manager, and a `sanitize.training.Recorder`.

    On leaving, the run is FINISHED; FAILED after an exception, whose message goes to the tag ``sanitize.error``; KILLED
    after Ctrl-C or SIGTERM. SIGTERM is turned into ``SystemExit(143)`` where nobody else handles it.

    Args:
        store: Where the run goes.
        experiment: Made when missing.
        name: Name of the run in the UI; None lets MLflow invent one.
        tags: Tags of the run.
        run_id: Continue this run instead of making one; see `resume`.
    """

    def __init__(
        self,
        store: Store,
        *,
        experiment: str = EXPERIMENT,
        name: str | None = None,
        tags: Mapping[str, str] | None = None,
        run_id: str | None = None,
    ) -> None:
        self.store = store
        self.experiment = experiment
        self.name = name
        self._tags = dict(tags or {})
        self._run_id = run_id
        self._experiment_id = ""
        self._resumed = run_id is not None
        self._stages: dict[str, str] = {}
        self._buffer = MetricBuffer(store)
        self._terminated = False
        self._previous_handler: Any = None

    @classmethod
    def resume(cls, store: Store, run_id: str) -> RunRecorder:
        """Continue a run under its id: its stages are reused, metrics of steps that it has are not written twice."""
        return cls(store, run_id=run_id)

    @property
    def run_id(self) -> str:
        """Id of the parent run.

        Raises:
            TrackingError: The run was not started yet.
        """
        if self._run_id is None:
            raise TrackingError("the run was not started: use the recorder in a `with` statement.")
        return self._run_id

    @property
    def experiment_id(self) -> str:
        """Id of the experiment."""
        return self._experiment_id

    @property
    def run_url(self) -> str | None:
        """Page of the run in the UI; None for a store without a server."""
        return run_url(self.store, self._experiment_id, self.run_id)

    def __enter__(self) -> Self:
        with tracking_errors("could not start the run"):
            if self._run_id is None:
                self._experiment_id = self.store.experiment(self.experiment)
                run = self.store.client.create_run(
                    self._experiment_id, tags=origin_tags() | self._tags, run_name=self.name
                )
                self._run_id = str(run.info.run_id)
            else:
                self._reopen(self._run_id)
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            self._previous_handler = signal.signal(signal.SIGTERM, self._on_sigterm)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            status = self._status(error)
            if status == "FINISHED":
                self.flush()
                terminate(self.store, self.run_id, status)
                return
            # What stopped the run matters more than a store that went away with it.
            with suppress(TrackingError):
                self.tags({ERROR_TAG: _message(error)})
            with suppress(TrackingError):
                self.flush()
            with suppress(TrackingError):
                terminate(self.store, self.run_id, status)
        except BaseException:
            with suppress(TrackingError):
                terminate(self.store, self.run_id, "FAILED")
            raise
        finally:
            if self._previous_handler is not None:
                signal.signal(signal.SIGTERM, self._previous_handler)
                self._previous_handler = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A nested child run; what is recorded for this stage goes there, and the curves to the parent as well.

        Raises:
            TrackingError: The store refused.
        """
        with tracking_errors(f"could not start the stage {name!r}"):
            child = self._open_stage(name)
        self._stages[name] = child
        try:
            yield
            self.flush()
        except BaseException as error:
            with suppress(TrackingError):
                self.flush()
            with suppress(TrackingError):
                terminate(self.store, child, self._status(error))
            raise
        terminate(self.store, child, "FINISHED")

    def metrics(self, stage: str, values: Mapping[str, float], step: int) -> None:
        """Numbers of one epoch: to the stage's run under their names, to the parent as ``<stage>/<name>``.

        They are buffered, and written at most about a second later or at the end of the stage.

        Args:
            stage: Name of the stage.
            values: Name -> value.
            step: Epoch, from 0 or 1.
        """
        for name, value in values.items():
            self._buffer.add(self.run_id, f"{stage}/{name}", value, step)
            if stage in self._stages:
                self._buffer.add(self._stages[stage], name, value, step)
        self._buffer.flush_when_due()

    def flush(self) -> None:
        """Write what is buffered.

        Raises:
            TrackingError: The store refused; the numbers stay buffered.
        """
        self._buffer.flush()

    def summary(self, values: Mapping[str, float | None], model_id: str | None = None) -> None:
        """Results of the whole run; what could not be measured (None) is left out.

        Args:
            values: Name -> value, for example ``after/clean_accuracy``.
            model_id: Logged model that they are about; without it they belong to the run alone.

        Raises:
            TrackingError: The store refused.
        """
        moment = now()
        points = [
            Metric(key, float(value), moment, 0, model_id=model_id, run_id=self.run_id if model_id else None)
            for key, value in values.items()
            if value is not None
        ]
        with tracking_errors("could not write the results"):
            write(self.store, self.run_id, points)

    def params(self, values: Mapping[str, Any]) -> None:
        """Settings; nested mappings get dotted names. A long value is cut, and kept whole as an artifact.

        In a resumed run a setting that differs keeps its first value; the new one goes to a tag.

        Raises:
            TrackingError: The store refused.
        """
        flat = {key: str(value) for key, value in _flatten(values)}
        with tracking_errors("could not write the parameters"):
            known: Mapping[str, str] = self.store.client.get_run(self.run_id).data.params if self._resumed else {}
            for key, value in flat.items():
                if len(value) > _VALUE_LENGTH:
                    self.text(f"params/{key}.txt", value)
                    flat[key] = value[: _VALUE_LENGTH - 1] + "…"
            changed = {key: value for key, value in flat.items() if known.get(key, value) != value}
            new = [Param(key, value) for key, value in flat.items() if key not in known]
            for start in range(0, len(new), _PARAMS_PER_CALL):
                self.store.client.log_batch(self.run_id, params=new[start : start + _PARAMS_PER_CALL])
            self.tags({f"sanitize.resumed_with.{key}": value for key, value in changed.items()})

    def tags(self, values: Mapping[str, str]) -> None:
        """Tags of the parent run.

        Raises:
            TrackingError: The store refused.
        """
        with tracking_errors("could not write the tags"):
            for key, value in values.items():
                self.store.client.set_tag(self.run_id, key, value[:_TAG_LENGTH])

    def input(self, images: ImageSet, context: str) -> None:
        """Data that the run used; see `sanitize.tracking.datasets.log_input`."""
        log_input(self.store, self.run_id, images, context)

    def figure(self, name: str, png: bytes) -> None:
        """A picture, as ``figures/<name>.png``."""
        self._bytes(f"figures/{name.removeprefix('figures/').removesuffix('.png')}.png", png)

    def text(self, name: str, content: str) -> None:
        """A text file; `name` may hold folders."""
        self._bytes(name, content.encode())

    def file(self, path: Path, artifact_path: str | None = None) -> str:
        """A file, or the content of a folder, into the folder `artifact_path` of the run; its ``runs:/`` URI."""
        self.store.upload(self.run_id, path, artifact_path)
        inside = [artifact_path] if artifact_path else []
        if not path.is_dir():
            inside.append(path.name)
        return "/".join([f"runs:/{self.run_id}", *inside])

    def _bytes(self, name: str, content: bytes) -> None:
        place = PurePosixPath(name)
        with TemporaryDirectory() as folder:
            path = Path(folder) / place.name
            path.write_bytes(content)
            self.store.upload(self.run_id, path, None if place.parent == PurePosixPath() else place.parent.as_posix())

    def _reopen(self, run_id: str) -> None:
        try:
            run = self.store.client.get_run(run_id)
        except MlflowException as error:
            if is_absent(error):
                raise TrackingError(f"there is no run {run_id} in {self.store.shown} to resume.") from error
            raise
        self._experiment_id = run.info.experiment_id
        self.store.client.update_run(run_id, status="RUNNING")
        for tag in (ERROR_TAG, INTERRUPTED_TAG):
            if tag in run.data.tags:
                self.store.client.delete_tag(run_id, tag)
        self._buffer.resume(run)

    def _open_stage(self, name: str) -> str:
        client = self.store.client
        if name in self._stages:
            client.update_run(self._stages[name], status="RUNNING")
            return self._stages[name]
        if self._resumed:
            for run in _children(self.store, self._experiment_id, self.run_id):
                if run.data.tags.get(STAGE_TAG) == name:
                    client.update_run(run.info.run_id, status="RUNNING")
                    self._buffer.resume(run)
                    return str(run.info.run_id)
        tags = origin_tags() | {_PARENT_TAG: self.run_id, STAGE_TAG: name}
        return str(client.create_run(self._experiment_id, tags=tags, run_name=name).info.run_id)

    def _status(self, error: BaseException | None) -> str:
        if error is None:
            return "FINISHED"
        return "KILLED" if isinstance(error, KeyboardInterrupt) or self._terminated else "FAILED"

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        if self._terminated:  # again, while the run is being closed
            return
        self._terminated = True
        raise SystemExit(128 + number)


def mark_interrupted(store: Store, run_id: str) -> None:
    """Mark a run that died without a word, and its stages, as KILLED; a tag says that this was noticed later.

    Raises:
        TrackingError: There is no such run, or the store refused.
    """
    with tracking_errors(f"could not mark run {run_id} as interrupted"):
        run = store.client.get_run(run_id)
        for each in [run, *_children(store, run.info.experiment_id, run_id)]:
            if each.info.status in ("RUNNING", "SCHEDULED"):
                store.client.set_tag(each.info.run_id, INTERRUPTED_TAG, "the process ended without closing this run")
                terminate(store, each.info.run_id, "KILLED")


def _children(store: Store, experiment_id: str, run_id: str) -> list[Any]:
    return list(store.client.search_runs([experiment_id], f"tags.`{_PARENT_TAG}` = '{run_id}'", max_results=1000))


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _message(error: BaseException | None) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
