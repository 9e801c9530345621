"""Cleaning a data set as a job: scored once, split, filtered, registered beside the suspect data, and judged."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sanitize.dataset_inputs import MEMORY, DatasetInputs, DatasetRequest, gather_dataset, retraining_request
from sanitize.dataset_publication import DatasetPublication
from sanitize.detection import DataDetector, detector_named
from sanitize.errors import DataError
from sanitize.publication import record_settings
from sanitize.tracking import RunRecorder, Store, mark_interrupted
from sanitize.trainers import SimCLR, Supervised, Trainer
from sanitize.training import Display, Engine, require_one_process
from sanitize.training_job import TrainingJob
from sanitize.types import ModelKind, Report
from sanitize.workdir import DEFAULT_PARENT, Workdir

WARM_UP = {"epochs": 2, "batch_size": 64, "learning_rate": 0.01, "crop_padding": 0, "flip": 0.0}
"""Of a classifier's training without a suspect: short, so that the backdoor is learned and little else, unaugmented."""
SELF_SUPERVISED = {"epochs": 100, "batch_size": 128, "learning_rate": 0.06}
"""Of an encoder's training without a suspect: as many epochs as PoisonCAM found enough to search by (its Table III)."""
TRAININGS: dict[ModelKind, tuple[type[Trainer], dict[str, Any]]] = {
    "classifier": (Supervised, WARM_UP),
    "encoder": (SimCLR, SELF_SUPERVISED),
}
"""How the threat model is trained where none is given, by the kind that a detector looks with."""


class DatasetJob:
    """Looks for poisoned images in a data set, and registers what is left when it found some.

    The detector scores every image once, with a network that was trained on such data: a model of the registry, which
    is read as every suspect is, or one that is trained here. Nothing is removed without evidence in the scores.

    Args:
        detector: A name, or an instance with its parameters.
        training: Trains the threat model where none is given; when left out that of `TRAININGS`.
        retraining: Trains on the cleaned data where that is asked for; the same with its own defaults when left out.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: A Lightning Fabric precision, for example ``bf16-mixed``.
        strategy: A Lightning Fabric strategy.
        seed: Source of all randomness.
        tracking_uri: MLflow; its own default when left out.
        workdir: Checkpoints and results of the job; a folder below ``.sanitize`` when left out.
        resume: Continue the interrupted job in the work directory.
        display: Shows progress; silent when left out.

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
        seed: int = 0,
        tracking_uri: str | None = None,
        workdir: str | Path | None = None,
        resume: bool = False,
        display: Display | None = None,
    ) -> None:
        require_one_process("the search of a data set")
        self.detector = detector_named(detector)() if isinstance(detector, str) else detector
        trainer, settings = TRAININGS[self.detector.kind]
        self.training = training or trainer(**settings)
        self.retraining = retraining or trainer()
        self.device = device
        self.precision = precision
        self.strategy = strategy
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
        with Workdir(self.folder(request), resume=self.resume) as workdir:
            engine = Engine(
                device=self.device,
                precision=self.precision,
                strategy=self.strategy,
                seed=self.seed,
                checkpoints=workdir.checkpoints,
                resume=self.resume,
                display=self.display,
            )
            store = Store(self.tracking_uri)
            inputs = gather_dataset(
                request, self.detector, self.training, seed=self.seed, store=store, folder=workdir.quarantine
            )
            fingerprint = inputs.fingerprint | {
                "method": repr(self.detector),
                "retraining": repr(self.retraining) if request.register_model else "",
                "seed": str(self.seed),
                "precision": self.precision,
            }
            if finished := workdir.finished_report(fingerprint):
                self.display.say(f"This job is finished already; its report is {finished}.")
                return Report.from_dict(json.loads(finished.read_text()))
            run_id = workdir.begin(fingerprint)
            if workdir.interrupted_run:
                mark_interrupted(store, workdir.interrupted_run)
                self.display.say("The unfinished job in the work directory is dropped; --resume would continue it.")
            name = f"{self.detector.name} {request.data.removeprefix('models:/')}"
            with RunRecorder(store, name=name, run_id=run_id) as recorder:
                workdir.remember_run(recorder.run_id)
                engine.recorder = recorder
                report = _Cleaning(self, request, inputs, engine, store, recorder, workdir).run()
            workdir.finish()
        return report

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
            if self.request.register_model:
                with self._timed("retrain"):
                    self._retrain(report)
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

    def _retrain(self, report: Report) -> None:
        """Train on what is left; the result is a job of its own, with a report of its own."""
        job, folder = self.job, self.workdir.path / "retraining"
        trained = TrainingJob(
            job.retraining,
            device=job.device,
            precision=job.precision,
            strategy=job.strategy,
            seed=job.seed,
            tracking_uri=job.tracking_uri,
            workdir=folder,
            resume=job.resume and (folder / "job.json").exists(),
            display=job.display,
        ).run(retraining_request(self.request, report.outputs["data_uri"], self.inputs.network))
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
