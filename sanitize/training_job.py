"""Training from scratch as a job: data in, a registered and bound network out, judged like every other result."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from sanitize.data import ImageSet
from sanitize.data.room import MEMORY
from sanitize.detection import Scores
from sanitize.environment import environment, tool
from sanitize.evaluation import Measurement, Policy
from sanitize.evaluation.filtering import measure_filtering
from sanitize.job import Job
from sanitize.publication import Publication, described_data, described_method, record_settings
from sanitize.reporting.figures import Figure, losses, picture
from sanitize.reporting.trust import class_balance, least_trusted, loss_distribution
from sanitize.tracking import Binding, RunRecorder, Store, bind, mark_interrupted
from sanitize.trainers import Trained, Trainer, trainer_named
from sanitize.training import Display, Engine, require_splittable, world
from sanitize.training_inputs import TrainingInputs, TrainingRequest, gather_training
from sanitize.types import RESIZE_RULE, Metrics, Report, Verdict
from sanitize.workdir import DEFAULT_PARENT, Workdir

Value = TypeVar("Value")
SPLITTABLE = frozenset({"byol", "d-st", "decoupled", "moco-v3", "simclr", "supervised"})
"""Trainings that several processes may do together (docs/scaling.md)."""
LOSSES_FILE, FILTERED_FILE = "losses.parquet", "filtered-out.txt"


class TrainingJob(Job):
    """Trains a network from scratch, judges and exports it, and registers it with what is needed to examine it.

    Args:
        trainer: A name (`sanitize methods` lists them), or an instance with its hyperparameters.
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
        policy: Thresholds of the verdict.
        display: Shows progress; silent when left out.

    Raises:
        ConfigError: The training is unknown, or not one that several processes can do.

    Example:
        >>> TrainingJob("supervised", seed=1).trainer.name
        'supervised'
    """

    def __init__(
        self,
        trainer: str | Trainer,
        *,
        device: str = "auto",
        precision: str = "32-true",
        strategy: str = "auto",
        devices: int | None = None,
        num_nodes: int | None = None,
        seed: int = 0,
        tracking_uri: str | None = None,
        workdir: str | Path | None = None,
        resume: bool = False,
        policy: Policy | None = None,
        display: Display | None = None,
    ) -> None:
        self.trainer = trainer_named(trainer)() if isinstance(trainer, str) else trainer
        self.device = device
        self.precision = precision
        self.strategy = strategy
        self.devices, self.num_nodes = world(devices, num_nodes)
        require_splittable(self.trainer.name, SPLITTABLE, self.devices, self.num_nodes)
        self.seed = seed
        self.tracking_uri = tracking_uri
        self.workdir = Path(workdir) if workdir else None
        self.resume = resume
        self.policy = policy or Policy()
        self.display = display or Display(quiet=True)

    def run(self, request: TrainingRequest) -> Report:
        """Train, judge, export, register, bind.

        Returns:
            The report, whose subject is the data; it is also in the work directory and in the MLflow run.

        Raises:
            SanitizeError: Something is missing, unfit or out of reach. Nothing is registered then.
        """
        engine = self._engine(self.folder(request))
        return engine.processes.report(lambda: self._lead(request, engine), lambda: self._follow(request, engine))

    def _lead(self, request: TrainingRequest, engine: Engine) -> Report:
        """What one process does, or the first of several."""
        with Workdir(self.folder(request), resume=self.resume) as workdir:
            store = Store(self.tracking_uri)
            inputs = gather_training(request, self.trainer, seed=self.seed, store=store, folder=workdir.quarantine)
            fingerprint = self._fingerprint(inputs)
            if finished := workdir.finished_report(fingerprint):
                self.display.say(f"This job is finished already; its report is {finished}.")
                engine.processes.tell("job", None)
                return Report.from_dict(json.loads(finished.read_text()))
            run_id = workdir.begin(fingerprint)
            if workdir.interrupted_run:
                mark_interrupted(store, workdir.interrupted_run)
                self.display.say("The unfinished job in the work directory is dropped; --resume would continue it.")
            with RunRecorder(store, name=f"{self.trainer.name} {request.register}", run_id=run_id) as recorder:
                workdir.remember_run(recorder.run_id)
                engine.recorder = recorder
                engine.processes.tell("job", fingerprint)
                report = self._train(request, inputs, engine, store, recorder, workdir)
            workdir.finish()
        return report

    def _follow(self, request: TrainingRequest, engine: Engine) -> None:
        """What the other processes do: read the same, work with the first one, write nothing."""
        fingerprint = engine.processes.hear("job")
        if fingerprint is not None:
            quarantine = self.folder(request).absolute() / "quarantine"  # images that take much room go there
            quarantine.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=quarantine, ignore_cleanup_errors=True) as folder:
                store = Store(self.tracking_uri)
                inputs = gather_training(request, self.trainer, seed=self.seed, store=store, folder=Path(folder))
                engine.processes.require_same_job(fingerprint, self._fingerprint(inputs))
                trained = self.trainer.train(inputs.network, inputs.data, engine, monitor=inputs.monitor)
                inputs.evaluator.measure(trained.network, engine)

    def _fingerprint(self, inputs: TrainingInputs) -> dict[str, str]:
        return inputs.fingerprint | {
            "method": repr(self.trainer),
            "policy": repr(self.policy),
            "seed": str(self.seed),
            "precision": self.precision,
        }

    def folder(self, request: TrainingRequest) -> Path:
        """Work directory of the job."""
        slug = re.sub(r"[^A-Za-z0-9.]+", "-", f"{request.register}-{self.trainer.name}").strip("-")
        return self.workdir or Path(DEFAULT_PARENT) / slug

    def _train(
        self,
        request: TrainingRequest,
        inputs: TrainingInputs,
        engine: Engine,
        store: Store,
        recorder: RunRecorder,
        workdir: Workdir,
    ) -> Report:
        trainer = self.trainer
        record_settings(
            recorder,
            trainer,
            seed=self.seed,
            inputs={"train": inputs.data, "probe": inputs.probe_data, "test": inputs.test_data},
        )
        started = time.perf_counter()
        trained = trainer.train(inputs.network, inputs.data, engine, monitor=inputs.monitor)
        timings = {"train": round(time.perf_counter() - started, 3)}
        started = time.perf_counter()
        with recorder.stage("evaluate-after"):
            measured = inputs.evaluator.measure(trained.network, engine)
        timings["evaluate-after"] = round(time.perf_counter() - started, 3)
        report = self._report(request, inputs, trained, measured, engine)
        if trained.filterings:
            report.outputs |= _write_filterings(trained, inputs.data, workdir.path, recorder)
        report.timings = timings
        publication = Publication(
            store=store,
            recorder=recorder,
            workdir=workdir,
            reference=inputs.reference,
            subject_sha256=inputs.data.sha256,
            method=trainer.name,
            policy=self.policy.reference,
            name=request.register,
        )
        report = publication.publish(trained.network.cpu().eval(), report)
        bind(store, request.register, self._binding(request, inputs), [Path(path) for path in request.triggers])
        return report

    def _binding(self, request: TrainingRequest, inputs: TrainingInputs) -> Binding:
        return Binding(
            data=inputs.reference.uri,
            probe_data=request.probe_data or (inputs.reference.uri if inputs.probe_data else None),
            test_data=request.test_data,
            architecture=request.arch,
            normalization=request.normalization,
            image_size=request.image_size,
            kind=self.trainer.kind,
        )

    def _report(
        self, request: TrainingRequest, inputs: TrainingInputs, trained: Trained, measured: Measurement, engine: Engine
    ) -> Report:
        verdict, reasons = judge_training(measured.metrics, inputs.test_data, self.policy)
        filtered = _of_filters(trained, inputs.poisoned)
        spec = inputs.network.spec
        figures = [losses({stage: history.epochs for stage, history in trained.history.items()})]
        figures += [
            picture(name, image, f"{name.replace('-', ' ').capitalize()} found by the training")
            for name, image in trained.pictures.items()
        ]
        figures += _filter_figures(trained, inputs)
        return Report(
            tool=tool(),
            subject={
                "uri": inputs.reference.uri,
                "kind": "data set",
                "sha256": inputs.data.sha256,
                "trained": {
                    "kind": spec.kind,
                    "architecture": spec.architecture,
                    "normalization": spec.normalization.name,
                    "image_size": spec.image_size,
                    "resize": RESIZE_RULE,
                    "output_size": spec.output_size,
                    **({"encoder": request.encoder} if request.encoder else {}),
                },
            },
            defense=described_method(self.trainer, self.policy),
            data=described_data(
                inputs.data, probe_data=inputs.probe_data, test_data=inputs.test_data, triggers=inputs.triggers
            ),
            verdict=verdict,
            reasons=reasons,
            findings=list(trained.findings),
            metrics={
                "before": {},
                "after": trained.metrics | _of_one_network(measured.metrics) | filtered.metrics,
            },
            unmeasured=_of_one_network(measured.unmeasured) | filtered.unmeasured,
            outputs={"command": self._command(request)},
            throughput={f"{stage} images/s": history.images_per_second for stage, history in trained.history.items()},
            seed=self.seed,
            environment=environment() | engine.settings,
            figures=tuple(figures),
        )

    def _command(self, request: TrainingRequest) -> str:
        given = [
            ("--method", self.trainer.name),
            *(("--set", f"{name}={value}") for name, value in self.trainer.model_dump(exclude_defaults=True).items()),
            ("--arch", request.arch),
            ("--normalization", request.normalization),
            ("--image-size", request.image_size),
            ("--probe-data", request.probe_data),
            ("--test-data", request.test_data),
            *(("--trigger", trigger) for trigger in request.triggers),
            ("--encoder", request.encoder),
            ("--truth", request.truth),
            ("--register", request.register),
            ("--memory", None if request.memory == MEMORY else request.memory),
            ("--seed", self.seed),
        ]
        options = [f"{option} {shlex.quote(str(value))}" for option, value in given if value is not None]
        return " ".join(["sanitize train", shlex.quote(request.data), *options])


def _of_one_network(values: Mapping[str, Value]) -> dict[str, Value]:
    """Without the measures that compare a network with an earlier one."""
    return {name: value for name, value in values.items() if not name.endswith("_old_head")}


def _filter_figures(trained: Trained, inputs: TrainingInputs) -> list[Figure]:
    """Losses and classes of each filter, and what the last one trusted least."""
    filterings, data = trained.filterings, inputs.data
    figures = []
    for moment, filtering in filterings.items():
        figures += [loss_distribution(moment, filtering, inputs.poisoned), class_balance(moment, filtering, data)]
    return figures + [least_trusted(*item, data) for item in list(filterings.items())[-1:]]


def _of_filters(trained: Trained, poisoned: Tensor | None) -> Measurement:
    """Recall, precision and so on of each filter, where the truth is known."""
    found = Measurement({}, {})
    for moment, filtering in trained.filterings.items() if poisoned is not None else ():
        of_one = measure_filtering(Scores(filtering.losses), ~filtering.trusted, poisoned)
        found.metrics |= {f"{name}/{moment}": value for name, value in of_one.metrics.items()}
        found.unmeasured |= {f"{name}/{moment}": reason for name, reason in of_one.unmeasured.items()}
    return found


def _write_filterings(trained: Trained, data: ImageSet, folder: Path, recorder: RunRecorder) -> dict[str, str]:
    """Losses of all images, and the rows that were not trusted in the end, into the work directory and the run."""
    rows = range(len(data))
    columns: dict[str, list[Any]] = {"index": list(rows), "label": data.require_labels("the losses").tolist()}
    for moment, filtering in trained.filterings.items():
        columns |= {f"loss {moment}": filtering.losses.tolist(), f"trusted {moment}": filtering.trusted.tolist()}
    trusted = filtering.trusted.tolist()
    filtered = "".join(f"{row}\n" for row in rows if not trusted[row])
    pq.write_table(pa.table(columns), folder / LOSSES_FILE)
    (folder / FILTERED_FILE).write_text(f"# rows of {data.uri}\n{filtered}")
    for file in (LOSSES_FILE, FILTERED_FILE):
        recorder.file(folder / file)
    return {
        "losses_uri": f"runs:/{recorder.run_id}/{LOSSES_FILE}",
        "filtered_uri": f"runs:/{recorder.run_id}/{FILTERED_FILE}",
    }


def judge_training(metrics: Metrics, test_data: ImageSet | None, policy: Policy) -> tuple[Verdict, list[str]]:
    """Verdict on a network that was trained on data that others may have poisoned.

    Args:
        metrics: Of the trained network.
        test_data: What they were measured on.
        policy: Thresholds.

    Returns:
        Verdict and at least one reason.

    Example:
        >>> judge_training({}, None, Policy())[0]
        <Verdict.INCONCLUSIVE: 'inconclusive'>
    """
    failures: list[str] = []
    open_questions: list[str] = []
    kept: list[str] = []
    accuracy, success = metrics.get("clean_accuracy"), metrics.get("attack_success_rate")
    if accuracy is None or test_data is None:
        open_questions.append("clean accuracy was not measured; give labelled images with --test-data to settle it")
    else:
        counts = torch.bincount(test_data.require_labels("the evaluation"))
        chance = float(counts.max()) / len(test_data)
        text = f"clean accuracy {accuracy:.1%} (the largest class has {chance:.1%})"
        (kept if accuracy > chance else failures).append(text)
    if success is None:
        open_questions.append(
            "no trigger was tried on the trained network, and training on data that others made may plant one; "
            "a known trigger (--trigger, with --test-data) would settle it"
        )
    else:
        text = f"attack success rate {success:.1%} (allowed {policy.maximum_attack_success_rate:.1%})"
        (failures if success > policy.maximum_attack_success_rate else kept).append(text)
    if failures:
        return Verdict.FAIL, failures + open_questions + kept
    if open_questions:
        return Verdict.INCONCLUSIVE, open_questions + kept
    return Verdict.PASS, kept
