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

import pyarrow as pa
import pyarrow.parquet as pq

from sanitize.data import ImageSet
from sanitize.dataset_inputs import DatasetInputs, DatasetRequest, gather_dataset, retraining_request
from sanitize.detection import DataDetector, Scores, Split, detector_named
from sanitize.detection.window_search import WindowScores
from sanitize.environment import environment, tool
from sanitize.errors import DataError
from sanitize.evaluation import Policy
from sanitize.evaluation.filtering import judge_data, measure_filtering, measure_windows
from sanitize.publication import described_data, described_method, record_settings
from sanitize.reporting import description, render, write
from sanitize.reporting.evidence import pictures
from sanitize.tracking import RunRecorder, Store, deep_links, mark_interrupted, ui_command
from sanitize.tracking.clean_data import release_data
from sanitize.trainers import SimCLR, Supervised, Trainer
from sanitize.training import Display, Engine
from sanitize.training_job import TrainingJob
from sanitize.types import RESIZE_RULE, Finding, ModelKind, Report, Severity
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
SCORES_FILE, FLAGGED_FILE, CLEAN_FILE = "scores.parquet", "flagged.txt", "images.parquet"


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
        self.store = store
        self.recorder = recorder
        self.workdir = workdir
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
        report = self._report(scores, split)
        self._write_scores(scores, split)
        if bool(split.poisoned.any()):
            with self._timed("register"):
                report.outputs["data_uri"] = self._release(report, split)
            if self.request.register_model:
                with self._timed("retrain"):
                    self._retrain(report)
        return self._deliver(report)

    def _train(self) -> None:
        trainer = self.job.training
        settings = {name: item["value"] for name, item in trainer.parameters().items()}
        self.recorder.params({"train": {"method": trainer.name} | settings})
        started = time.perf_counter()
        trained = trainer.train(self.inputs.network, self.inputs.data, self.engine)
        self.timings["train"] = round(time.perf_counter() - started, 3)
        self.training_accuracy = trained.metrics.get("training_accuracy")

    def _report(self, scores: Scores, split: Split) -> Report:
        measured = measure_filtering(scores, split.poisoned, self.inputs.poisoned)
        if isinstance(scores, WindowScores):
            located = measure_windows(scores, self.inputs.poisoned, self.inputs.boxes)
            measured.metrics |= located.metrics
            measured.unmeasured |= located.unmeasured
        verdict, reasons = judge_data(split, self.inputs.poisoned, suspect=self.inputs.suspect is not None)
        if self.training_accuracy is not None and not bool(split.poisoned.any()):
            reasons.append(
                f"the network that was trained here is right on {self.training_accuracy:.1%} of its images; a backdoor "
                "that it has not learned is not seen: other settings (--train-set) or a suspect (--model) may show it"
            )
        suspect, data = self.inputs.suspect, self.inputs.data
        return Report(
            tool=tool(),
            subject=self._subject(),
            defense=described_method(self.job.detector, Policy()),
            data=described_data(data, probe_data=None, test_data=None, triggers=()),
            verdict=verdict,
            reasons=reasons,
            findings=[
                *(suspect.tensors.findings if suspect else ()),
                *(suspect.suspect.findings if suspect else ()),
                *_findings(data, split),
            ],
            metrics={"before": {}, "after": measured.metrics | dict(split.numbers) | self._of_training()},
            unmeasured=measured.unmeasured,
            outputs={
                "data_uri": None,
                "removed": int(split.poisoned.sum()),
                "kept": len(data) - int(split.poisoned.sum()),
                "scores_uri": f"runs:/{self.recorder.run_id}/{SCORES_FILE}",
                "flagged_uri": f"runs:/{self.recorder.run_id}/{FLAGGED_FILE}",
                "command": self._command(),
            },
            throughput={"score images/s": round(len(data) / max(self.timings["score"], 1e-3), 1)},
            seed=self.engine.seed,
            environment=environment() | self.engine.settings,
            figures=pictures(data, scores, split),
        )

    def _subject(self) -> dict[str, Any]:
        spec, suspect = self.inputs.network.spec, self.inputs.suspect
        return {
            "uri": self.inputs.data.uri,
            "kind": "data set",
            "sha256": self.inputs.data.sha256,
            "threat_model": {
                "uri": suspect.reference.pinned_uri if suspect else None,
                "training": None if suspect else repr(self.job.training),
                "kind": spec.kind,
                "architecture": spec.architecture,
                "normalization": spec.normalization.name,
                "image_size": spec.image_size,
                "resize": RESIZE_RULE,
            },
        }

    def _of_training(self) -> dict[str, float | None]:
        if self.inputs.suspect or self.inputs.network.spec.kind == "encoder":
            return {}
        return {"threat_model_accuracy": self.training_accuracy}

    def _write_scores(self, scores: Scores, split: Split) -> None:
        """Scores and flagged rows into the work directory and the run."""
        rows = range(len(scores.values))
        decisions = ["clean" if c else "poisoned" if p else "uncertain" for c, p in _pairs(split)]
        columns = {"index": list(rows), "score": scores.values.tolist(), "decision": decisions}
        columns |= {name: values.tolist() for name, values in scores.columns.items()}
        if scores.labels is not None:
            columns["label"] = scores.labels.tolist()
        flagged = [f"{row}\n" for row in rows if decisions[row] == "poisoned"]
        pq.write_table(pa.table(columns), self.workdir.path / SCORES_FILE)
        (self.workdir.path / FLAGGED_FILE).write_text(f"# rows of {self.inputs.data.uri}\n{''.join(flagged)}")
        for file in (SCORES_FILE, FLAGGED_FILE):
            self.recorder.file(self.workdir.path / file)

    def _release(self, report: Report, split: Split) -> str:
        return release_data(
            self.store,
            self.recorder,
            self.inputs.original.write(~split.poisoned, self.workdir.staging / CLEAN_FILE),
            name=self.inputs.name,
            parent=self.inputs.data.uri,
            reference=self.inputs.reference,
            method=self.job.detector.name,
            verdict=report.verdict,
            description=description(report),
        )

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

    def _deliver(self, report: Report) -> Report:
        """Report and figures into the run and the work directory."""
        recorder = self.recorder
        uri = report.outputs["data_uri"]
        links = deep_links(
            self.store, experiment_id=recorder.experiment_id, run_id=recorder.run_id, model_uri=uri or None
        )
        report.timings = self.timings
        report.outputs |= {
            "report_uri": f"runs:/{recorder.run_id}/report.html",
            "folder": str(self.workdir.path),
            "run_id": recorder.run_id,
            "run_url": links["run"],
            "data_url": links.get("version"),
            "next": [command for command in (ui_command(self.store), *self._next(uri)) if command],
        }
        for figure in report.figures:
            recorder.figure(f"figures/{figure.name}.png", figure.png)
        recorder.text("report.json", report.to_json())
        recorder.text("report.html", render(report, "html", figures=report.figures))
        for moment, values in report.metrics.items():
            recorder.summary({f"{moment}/{key}": value for key, value in values.items()})
        recorder.tags(
            {
                "sanitize.verdict": str(report.verdict),
                "sanitize.method": self.job.detector.name,
                "sanitize.parent": self.inputs.data.uri,
                "mlflow.note.content": description(report),
            }
        )
        write(report, self.workdir.path / "report.html", figures=report.figures)
        write(report, self.workdir.path / "report.json")
        return report

    def _next(self, uri: str | None) -> list[str]:
        suspect = self.inputs.suspect
        if uri is None or suspect is None or self.inputs.network.spec.kind != "classifier":
            return []
        flagged = shlex.quote(str(self.workdir.path / FLAGGED_FILE))
        return [
            f"sanitize classifier {shlex.quote(suspect.reference.pinned_uri)} --method d-br "
            f"--data {shlex.quote(self.inputs.data.uri)} --suspected {flagged}"
        ]

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
            ("--seed", job.seed),
        ]
        options = [f"{option} {shlex.quote(str(value))}" for option, value in given if value is not None]
        retrain = ["--retrain"] if request.register_model else []
        return " ".join(["sanitize dataset", shlex.quote(request.data), *options, *retrain])

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        with self.recorder.stage(stage):
            yield
        self.timings[stage] = round(time.perf_counter() - started, 3)


def _changed(method: DataDetector | Trainer) -> list[tuple[str, Any]]:
    return list(method.model_dump(exclude_defaults=True).items())


def _pairs(split: Split) -> Iterator[tuple[bool, bool]]:
    return zip(split.clean.tolist(), split.poisoned.tolist(), strict=True)


def _findings(data: ImageSet, split: Split) -> Iterator[Finding]:
    """What was found, with counts a class; and classes of which nothing is left."""
    counts = {name: dict.fromkeys(split.counts, 0) for name in _class_names(data)}
    groups = {name: getattr(split, name) for name in split.counts}
    if data.labels is not None:
        names = list(counts)
        for group, chosen in groups.items():
            for label in data.labels[chosen].tolist():
                counts[names[label]][group] += 1
    yield Finding(
        rule="data-poisoned" if split.evidence else "data-no-evidence",
        severity=Severity.ERROR if split.evidence else Severity.NOTE,
        message=f"{split.reason[:1].upper()}{split.reason[1:]}.",
        evidence={"counts": split.counts, "classes": counts},
    )
    if split.doubt and not split.evidence:
        yield Finding(
            rule="data-network-suspicious",
            severity=Severity.WARNING,
            message=f"{split.doubt[:1].upper()}{split.doubt[1:]}.",
            evidence=dict(split.numbers),
        )
    for name, found in counts.items():
        if found["poisoned"] and found["poisoned"] == sum(found.values()):
            yield Finding(
                rule="data-class-lost",
                severity=Severity.WARNING,
                message=f"All {found['poisoned']} images of class {name} were removed.",
                evidence={"class": name},
            )


def _class_names(data: ImageSet) -> list[str]:
    if data.labels is None:
        return []
    return list(data.class_names or map(str, range(int(data.labels.max()) + 1)))
