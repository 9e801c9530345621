"""Cleaning a data set as a job: scored once, split, filtered, registered beside the suspect data, and judged."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sanitize.data.room import MEMORY
from sanitize.dataset_inputs import DatasetInputs, DatasetRequest, gather_dataset, retraining_request
from sanitize.dataset_publication import DatasetPublication
from sanitize.detection import DataDetector, detector_named
from sanitize.errors import DataError
from sanitize.job import Job
from sanitize.publication import record_settings
from sanitize.suspects import Network
from sanitize.tracking import RunRecorder, Store, mark_interrupted
from sanitize.trainers import SimCLR, Supervised, Trainer
from sanitize.training import Display, Engine, require_splittable, world
from sanitize.training_job import SPLITTABLE as SPLITTABLE_TRAININGS
from sanitize.training_job import TrainingJob
from sanitize.types import ModelKind, Report
from sanitize.workdir import DEFAULT_PARENT, Workdir

SPLITTABLE = frozenset({"fct", "patchsearch", "poisoncam"})
"""Detectors whose search several processes may share (docs/scaling.md)."""
WARM_UP = {"epochs": 3, "batch_size": 64, "learning_rate": 0.01, "crop_padding": 0, "flip": 0.0}
"""Of a classifier's training without a suspect: short, so that the backdoor is learned and little else, unaugmented."""
SELF_SUPERVISED = {"epochs": 100, "batch_size": 128, "learning_rate": 0.06}
"""Of an encoder's training without a suspect: as many epochs as PoisonCAM found enough to search by (its Table III)."""
TRAININGS: dict[ModelKind, tuple[type[Trainer], dict[str, Any]]] = {
    "classifier": (Supervised, WARM_UP),
    "encoder": (SimCLR, SELF_SUPERVISED),
}
"""How the threat model is trained where none is given, by the kind that a detector looks with."""


class DatasetJob(Job):
    """Looks for poisoned images in a data set, and registers what is left when it found some.

    The detector scores every image once, with a network that was trained on such data: a model of the registry, which
    is read as every suspect is, or one that is trained here. Nothing is removed without evidence in the scores.

    Args:
        detector: A name, or an instance with its parameters.
        training: Trains the threat model where none is given; when left out that of `TRAININGS`.
        retraining: Trains on the cleaned data where that is asked for; the same with its own defaults when left out.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: A Lightning Fabric precision, for example ``bf16-mixed``.
        strategy: A Lightning Fabric strategy; with several processes ``auto`` or ``ddp``.
        devices: Processes on each machine, each with a device of its own. When left out as torchrun or srun has
            started them, else one. All processes get the same report.
        num_nodes: Machines; likewise.
        seed: Source of all randomness.
        tracking_uri: MLflow; its own default when left out.
        workdir: Checkpoints and results of the job; a folder below ``.sanitize`` when left out.
        resume: Continue the interrupted job in the work directory.
        display: Shows progress; silent when left out.

    Raises:
        ConfigError: The detector is unknown; or it or a training is not one that several processes can do.

    Example:
        >>> DatasetJob("fct", seed=1).detector.name
        'fct'
    """

    def __init__(
        self,
        detector: str | DataDetector,
        *,
        training: Trainer | None = None,
        retraining: Trainer | None = None,
        device: str = "auto",
        precision: str = "32-true",
        strategy: str = "auto",
        devices: int | None = None,
        num_nodes: int | None = None,
        seed: int = 0,
        tracking_uri: str | None = None,
        workdir: str | Path | None = None,
        resume: bool = False,
        display: Display | None = None,
    ) -> None:
        self.detector = detector_named(detector)() if isinstance(detector, str) else detector
        trainer, settings = TRAININGS[self.detector.kind]
        self.training = training or trainer(**settings)
        self.retraining = retraining or trainer()
        self.device = device
        self.precision = precision
        self.strategy = strategy
        self.devices, self.num_nodes = world(devices, num_nodes)
        require_splittable(self.detector.name, SPLITTABLE, self.devices, self.num_nodes)
        for one in (self.training, self.retraining):
            require_splittable(one.name, SPLITTABLE_TRAININGS, self.devices, self.num_nodes)
        self.seed = seed
        self.tracking_uri = tracking_uri
        self.workdir = Path(workdir) if workdir else None
        self.resume = resume
        self.display = display or Display(quiet=True)

    def run(self, request: DatasetRequest) -> Report:
        """Score, split, remove, register, and train anew where that is asked for.

        Returns:
            The report, whose subject is the data; it is also in the work directory and in the MLflow run.

        Raises:
            SanitizeError: Something is missing, unfit or out of reach.
        """
        engine = self._engine(self.folder(request))
        return engine.processes.report(lambda: self._lead(request, engine), lambda: self._follow(request, engine))

    def _lead(self, request: DatasetRequest, engine: Engine) -> Report:
        """What one process does, or the first of several."""
        with Workdir(self.folder(request), resume=self.resume) as workdir:
            store = Store(self.tracking_uri)
            inputs = self._gather(request, store, workdir.quarantine)
            fingerprint = self._fingerprint(request, inputs)
            if finished := workdir.finished_report(fingerprint):
                self.display.say(f"This job is finished already; its report is {finished}.")
                engine.processes.tell("job", None)
                return Report.from_dict(json.loads(finished.read_text()))
            run_id = workdir.begin(fingerprint)
            if workdir.interrupted_run:
                mark_interrupted(store, workdir.interrupted_run)
                self.display.say("The unfinished job in the work directory is dropped; --resume would continue it.")
            name = f"{self.detector.name} {request.data.removeprefix('models:/')}"
            with RunRecorder(store, name=name, run_id=run_id) as recorder:
                workdir.remember_run(recorder.run_id)
                engine.recorder = recorder
                engine.processes.tell("job", fingerprint)
                report = _Cleaning(self, request, inputs, engine, store, recorder, workdir).run()
            workdir.finish()
        return report

    def _follow(self, request: DatasetRequest, engine: Engine) -> None:
        """What the other processes do: read the same, work with the first one, write nothing."""
        processes = engine.processes
        fingerprint = processes.hear("job")
        if fingerprint is None:
            return
        quarantine = self.folder(request).absolute() / "quarantine"  # images that take much room go there
        quarantine.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=quarantine, ignore_cleanup_errors=True) as folder:
            inputs = self._gather(request, Store(self.tracking_uri), Path(folder))
            processes.require_same_job(fingerprint, self._fingerprint(request, inputs))
            if inputs.suspect is None:
                self.training.train(inputs.network, inputs.data, engine)
            self.detector.score(inputs.network, inputs.data, engine)
            if cleaned := processes.hear("retrain"):
                self.retrain(request, cleaned, inputs.network)

    def retrain(self, request: DatasetRequest, cleaned: str, network: Network) -> Report:
        """Train on what is left; a job of its own, with a report of its own.

        Args:
            request: That of this job.
            cleaned: ``models:/NAME/VERSION`` of what is left.
            network: Gives the architecture.
        """
        folder = self.folder(request).absolute() / "retraining"
        return TrainingJob(
            self.retraining,
            device=self.device,
            precision=self.precision,
            strategy=self.strategy,
            devices=self.devices,
            num_nodes=self.num_nodes,
            seed=self.seed,
            tracking_uri=self.tracking_uri,
            workdir=folder,
            resume=self.resume and (folder / "job.json").exists(),
            display=self.display,
        ).run(retraining_request(request, cleaned, network))

    def _gather(self, request: DatasetRequest, store: Store, folder: Path) -> DatasetInputs:
        return gather_dataset(request, self.detector, self.training, seed=self.seed, store=store, folder=folder)

    def _fingerprint(self, request: DatasetRequest, inputs: DatasetInputs) -> dict[str, str]:
        return inputs.fingerprint | {
            "method": repr(self.detector),
            "retraining": repr(self.retraining) if request.register_model else "",
            "seed": str(self.seed),
            "precision": self.precision,
        }

    def folder(self, request: DatasetRequest) -> Path:
        """Work directory of the job."""
        slug = re.sub(r"[^A-Za-z0-9.]+", "-", f"{request.data}-{self.detector.name}").strip("-.")
        return self.workdir or Path(DEFAULT_PARENT) / slug


class _Cleaning:
    """One data set on its way through a detector; `DatasetJob` prepares it."""

    def __init__(
        self,
        job: DatasetJob,
        request: DatasetRequest,
        inputs: DatasetInputs,
        engine: Engine,
        store: Store,
        recorder: RunRecorder,
        workdir: Workdir,
    ) -> None:
        self.job = job
        self.request = request
        self.inputs = inputs
        self.engine = engine
        self.recorder = recorder
        self.workdir = workdir
        self.publication = DatasetPublication(
            detector=job.detector,
            training=job.training,
            inputs=inputs,
            engine=engine,
            store=store,
            recorder=recorder,
            workdir=workdir,
        )
        self.timings: dict[str, float] = {}
        self.training_accuracy: float | None = None

    def run(self) -> Report:
        """All steps; see the module."""
        detector, data = self.job.detector, self.inputs.data
        record_settings(self.recorder, detector, seed=self.engine.seed, inputs={"suspect": data})
        if self.inputs.suspect is None:
            self._train()
        with self._timed("score"):
            scores = detector.score(self.inputs.network, data, self.engine)
        split = detector.split(scores)
        if bool(split.poisoned.all()):
            raise DataError(
                f"{detector.name} takes all {len(data)} images of {data.uri} for poisoned, so that nothing would be "
                "left. Look at the model and the settings."
            )
        report = self.publication.report(
            scores,
            split,
            command=self._command(),
            timings=self.timings,
            training_accuracy=self.training_accuracy,
        )
        self.publication.write_scores(scores, split)
        if bool(split.poisoned.any()):
            with self._timed("register"):
                report.outputs["data_uri"] = self.publication.release(report, split)
        cleaned = report.outputs["data_uri"] if self.request.register_model else None
        self.engine.processes.tell("retrain", cleaned)
        if cleaned:
            with self._timed("retrain"):
                self._retrain(report, cleaned)
        report.timings = self.timings
        return self.publication.deliver(report)

    def _train(self) -> None:
        trainer = self.job.training
        settings = {name: item["value"] for name, item in trainer.parameters().items()}
        self.recorder.params({"train": {"method": trainer.name} | settings})
        started = time.perf_counter()
        trained = trainer.train(self.inputs.network, self.inputs.data, self.engine)
        self.timings["train"] = round(time.perf_counter() - started, 3)
        self.training_accuracy = trained.metrics.get("training_accuracy")

    def _retrain(self, report: Report, cleaned: str) -> None:
        trained = self.job.retrain(self.request, cleaned, self.inputs.network)
        report.outputs |= {name: trained.outputs[name] for name in ("model_uri", "alias", "onnx_uri")}
        report.outputs |= {"retraining_run": trained.outputs["run_id"], "retraining_verdict": str(trained.verdict)}
        report.metrics["after"] |= trained.metrics["after"]
        report.unmeasured |= trained.unmeasured

    def _command(self) -> str:
        request, job = self.request, self.job
        usual = TRAININGS[job.detector.kind][1]
        given = [
            ("--method", job.detector.name),
            *(("--set", f"{name}={value}") for name, value in _changed(job.detector)),
            ("--model", request.model),
            *(("--train-set", f"{n}={v}") for n, v in _changed(job.training) if usual.get(n) != v),
            ("--arch", request.arch),
            ("--normalization", request.normalization),
            ("--image-size", request.image_size),
            ("--register", request.register),
            ("--truth", request.truth),
            ("--register-model", request.register_model),
            *(("--retrain-set", f"{n}={v}") for n, v in _changed(job.retraining)),
            ("--test-data", request.test_data),
            *(("--trigger", trigger) for trigger in request.triggers),
            ("--memory", None if request.memory == MEMORY else request.memory),
            ("--seed", job.seed),
        ]
        options = [f"{option} {shlex.quote(str(value))}" for option, value in given if value is not None]
        flags = (("--skip-unreadable", request.skip_unreadable), ("--retrain", request.register_model))
        given_flags = [flag for flag, given in flags if given]
        return " ".join(["sanitize dataset", shlex.quote(request.data), *options, *given_flags])

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        with self.recorder.stage(stage):
            yield
        self.timings[stage] = round(time.perf_counter() - started, 3)


def _changed(method: DataDetector | Trainer) -> list[tuple[str, Any]]:
    return list(method.model_dump(exclude_defaults=True).items())
