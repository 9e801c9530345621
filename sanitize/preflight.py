"""`--dry-run`: all checks of a job, what it would take and write; nothing is written, and no run is opened."""

from __future__ import annotations

import copy
import json
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from sanitize.data import ImageSet, Trigger
from sanitize.dataset_inputs import DatasetRequest, gather_dataset
from sanitize.dataset_job import DatasetJob
from sanitize.defenses import Need
from sanitize.errors import ConfigError, WorkdirError
from sanitize.inputs import Request
from sanitize.sanitizer import Sanitizer
from sanitize.scan import Scan
from sanitize.tracking import Store
from sanitize.tracking.release import target_name
from sanitize.tracking.runs import EXPERIMENT
from sanitize.training import Engine
from sanitize.training_inputs import TrainingRequest, gather_training
from sanitize.training_job import TrainingJob
from sanitize.trial import Estimate, estimate, seconds_of_passes
from sanitize.types import ModelSpec
from sanitize.workdir import Workdir

_TITLE = 31  # columns of a line's title


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What a job would do. That there is one means that the job could run: what stops it is an error.

    Args:
        subject: What is examined, or trained on.
        method: Name of the method.
        needs: What the method needs -> how that is met.
        network: Kind, architecture, normalization, image size.
        data: What a data set is for -> the set.
        measured: Measure -> yes, or what it takes.
        device: Where, and with which precision.
        estimate: Time and memory of the method.
        evaluation: Seconds of the passes through the network that evaluation makes.
        writes: What would be written, in order.
    """

    subject: str
    method: str
    needs: Mapping[str, str]
    network: str
    data: Mapping[str, str]
    measured: Mapping[str, str]
    device: str
    estimate: Estimate
    evaluation: float
    writes: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    def to_text(self) -> str:
        """One line for each fact."""
        rows = [("subject", self.subject), ("method", self.method), ("network", self.network)]
        rows += [(f"need: {need}", f"met, {how}") for need, how in self.needs.items()]
        rows += [(f"data: {name}", text) for name, text in self.data.items()]
        rows += [(f"measured: {name}", text) for name, text in self.measured.items()]
        rows += [("device", self.device)]
        rows += [(f"stage: {stage.name}", f"{stage.steps:,} steps, {duration(stage.seconds)}")
                 for stage in self.estimate.stages]  # fmt: skip
        rows += [("time", self._time()), ("memory", self._memory())]
        rows += [("would write", text) for text in self.writes]
        lines = [line for title, text in rows for line in _wrapped(title, text)]
        return "\n".join(["This job can run. Nothing was written.", "", *lines]) + "\n"

    def _time(self) -> str:
        if self.estimate.seconds is None:
            return f"not estimated; {self.estimate.note}"
        measuring = f", of which evaluation {duration(self.evaluation)}" if self.evaluation else ""
        total = duration(self.estimate.seconds + self.evaluation)
        return f"{total}{measuring}; fitting a probe and export come on top; {self.estimate.note}"

    def _memory(self) -> str:
        if self.estimate.memory is None:
            return "not estimated"
        return f"{self.estimate.memory / 2**30:.1f} GiB at the peak of the trial"


def _wrapped(title: str, text: str) -> list[str]:
    """A title and its text in 80 columns; paths and URIs stay whole."""
    lines = textwrap.wrap(text, 80 - _TITLE, break_long_words=False, break_on_hyphens=False)
    return [f"{start:<{_TITLE}}{line}" for start, line in zip([title, *[""] * len(lines)], lines, strict=False)]


def duration(seconds: float) -> str:
    """Seconds for a person.

    Example:
        >>> duration(0.4), duration(75), duration(9000)
        ('about 1 s', 'about 75 s', 'about 2.5 h')
    """
    if seconds < 120:
        return f"about {max(1, round(seconds))} s"
    return f"about {seconds / 60:.0f} min" if seconds < 7200 else f"about {seconds / 3600:.1f} h"


def of_purification(sanitizer: Sanitizer, request: Request) -> Preflight:
    """What `Sanitizer.run` would do.

    Raises:
        SanitizeError: What it would have raised before its first training step.
    """
    engine = _engine(sanitizer)
    store = Store(sanitizer.tracking_uri)
    defense = sanitizer.defense
    folder = _work_directory(sanitizer.folder(request.model), resume=sanitizer.resume)
    with TemporaryDirectory() as temporary:
        purification = sanitizer.prepare(request, store, Workdir(Path(temporary) / "job"), engine)
        inputs, data = purification.inputs, purification.data
        spec = inputs.suspect.network.spec
        found = estimate(
            lambda trial: defense.purify(inputs.suspect.network, data, trial), inputs.suspect.network, engine
        )
    needs = {str(Need.MODEL): f"{inputs.tensors.format}, read without executing it"}
    if Need.IMAGES in defense.needs and data is not None:
        needs[str(Need.IMAGES)] = f"{len(data):,} (at least {defense.minimum_images})"
    if Need.LABELS in defense.needs:
        needs[str(Need.LABELS)] = "every image has one"
    if Need.CLEAN_IMAGES in defense.needs:
        needs[str(Need.CLEAN_IMAGES)] = "as far as you vouch for them: nothing checks it"
    measured = _measured(spec.kind, inputs.probe_data, inputs.test_data, inputs.triggers)
    if sanitizer.drill is not None:
        measured["drill"] = f"{sanitizer.drill.count} canaries; takes about as many times as long again"
    name = target_name(inputs.reference)
    return Preflight(
        subject=inputs.reference.pinned_uri,
        method=defense.name,
        needs=needs,
        network=_described(spec),
        data=_data({"defence": data, "probe": inputs.probe_data, "test": inputs.test_data}),
        measured=measured,
        device=_device(engine),
        estimate=found,
        evaluation=seconds_of_passes(inputs.suspect.network, 2 * purification.passes, engine),
        writes=[_run(store), *_version(store, name, spec.kind), folder],
    )


def of_training(job: TrainingJob, request: TrainingRequest) -> Preflight:
    """What `TrainingJob.run` would do.

    Raises:
        SanitizeError: What it would have raised before its first training step.
    """
    engine = _engine(job)
    store = Store(job.tracking_uri)
    folder = _work_directory(job.folder(request), resume=job.resume)
    with TemporaryDirectory() as temporary:
        inputs = gather_training(request, job.trainer, seed=job.seed, store=store, folder=Path(temporary))
    network = copy.deepcopy(inputs.network)
    found = estimate(
        lambda trial: job.trainer.train(network, inputs.data, trial, monitor=inputs.monitor), network, engine
    )
    spec = inputs.network.spec
    needs = {"images": f"{len(inputs.data):,} (at least {job.trainer.minimum_images})"}
    if job.trainer.needs_labels:
        needs["labels"] = "every image has one"
    return Preflight(
        subject=inputs.reference.uri,
        method=job.trainer.name,
        needs=needs,
        network=_described(spec),
        data=_data({"training": inputs.data, "probe": inputs.probe_data, "test": inputs.test_data}),
        measured=_measured(spec.kind, inputs.probe_data, inputs.test_data, inputs.triggers),
        device=_device(engine),
        estimate=found,
        evaluation=seconds_of_passes(network, inputs.evaluator.passes, engine),
        writes=[
            _run(store),
            *_version(store, request.register, spec.kind),
            "the binding of that registered model",
            folder,
        ],
    )


def of_dataset(job: DatasetJob, request: DatasetRequest) -> Preflight:
    """What `DatasetJob.run` would do.

    Raises:
        SanitizeError: What it would have raised before its first training step.
    """
    engine = _engine(job)
    store = Store(job.tracking_uri)
    detector = job.detector
    folder = _work_directory(job.folder(request), resume=job.resume)
    with TemporaryDirectory() as temporary:
        inputs = gather_dataset(request, detector, job.training, seed=job.seed, store=store, folder=Path(temporary))
    network = copy.deepcopy(inputs.network)

    def work(trial: Engine) -> None:
        if inputs.suspect is None:
            job.training.train(network, inputs.data, trial)
        detector.score(network, inputs.data, trial)

    needs = {"images": f"{len(inputs.data):,} (at least {detector.minimum_images})"}
    if detector.kind == "classifier":
        needs["labels"] = "every image has one"
    needs["model"] = inputs.suspect.reference.pinned_uri if inputs.suspect else f"trained here, by {job.training.name}"
    writes = [
        _run(store),
        f"models:/{inputs.name}/{_next(store, inputs.name)}: what is left of the data, where poison is found",
    ]
    if request.register_model:
        writes += _version(store, request.register_model, detector.kind)
    return Preflight(
        subject=request.data,
        method=detector.name,
        needs=needs,
        network=_described(inputs.network.spec),
        data=_data({"suspect": inputs.data}),
        measured={}
        if inputs.poisoned is not None
        else {"recall and precision": "no, the truth is not known (--truth)"},
        device=_device(engine),
        estimate=estimate(work, network, engine),
        evaluation=0.0,
        writes=[*writes, folder],
    )


def of_scan(scan: Scan, request: Request, references: Sequence[str]) -> Preflight:
    """What `Scan.run` would do.

    Raises:
        SanitizeError: What it would have raised before its first measure.
    """
    engine = Engine(device=scan.device, precision=scan.precision, seed=scan.seed)
    store = Store(scan.tracking_uri)
    with TemporaryDirectory() as temporary:
        inputs, data, clean = scan.prepare(request, references, store, Path(temporary))
    network = inputs.suspect.network
    found = estimate(lambda trial: scan.detector.examine(network, data, trial), network, engine)
    if found.seconds is not None:  # the references are examined as the suspect is
        found = replace(found, seconds=found.seconds * (1 + len(clean)))
    needed = scan.policy.minimum_references
    return Preflight(
        subject=inputs.reference.pinned_uri,
        method=scan.detector.name,
        needs={
            "model": f"{inputs.tensors.format}, read without executing it",
            "images": f"{len(data):,} (at least {scan.detector.minimum_images})",
        },
        network=_described(network.spec),
        data=_data({"clean": data}),
        measured={
            "chance among clean models": "yes"
            if len(clean) >= needed
            else f"no, it takes {needed} clean references (--reference), and there are {len(clean)}"
        },
        device=_device(engine),
        estimate=found,
        evaluation=0.0,
        writes=[_run(store)],
    )


def _engine(job: Sanitizer | TrainingJob | DatasetJob) -> Engine:
    return Engine(device=job.device, precision=job.precision, strategy=job.strategy, seed=job.seed)


def _device(engine: Engine) -> str:
    if engine.device.type == "cuda":
        what = torch.cuda.get_device_name(engine.device)
    else:
        what = f"threads: {torch.get_num_threads()}"
    return f"{engine.device} ({what}), {engine.settings['precision']}"


def _described(spec: ModelSpec) -> str:
    size = f"{spec.output_size} {'features' if spec.kind == 'encoder' else 'classes'}"
    return f"{spec.architecture}, {spec.kind}, {spec.image_size} px, normalization {spec.normalization.name}, {size}"


def _data(sets: Mapping[str, ImageSet | None]) -> dict[str, str]:
    return {
        name: f"{images.uri}, {len(images):,} images, {'with' if images.labels is not None else 'without'} labels"
        for name, images in sets.items()
        if images is not None
    }


def _measured(kind: str, probe: ImageSet | None, test: ImageSet | None, triggers: Sequence[Trigger]) -> dict[str, str]:
    missing = [] if test is not None else ["--test-data"]
    if kind == "encoder" and probe is None:
        missing.insert(0, "--probe-data")
    without_trigger = missing if triggers else [*missing, "--trigger"]
    return {
        "clean accuracy": f"no, it takes {' and '.join(missing)}" if missing else "yes",
        "attack success rate": (
            f"no, it takes {' and '.join(without_trigger)}; the verdict cannot be pass" if without_trigger else "yes"
        ),
    }


def _run(store: Store) -> str:
    return f"a run in the experiment {EXPERIMENT} of {store.shown}{'' if store.exists else ' (made anew)'}"


def _version(store: Store, name: str, kind: str) -> list[str]:
    return [
        f"models:/{name}/{_next(store, name)}, whatever the verdict; alias sanitized on pass only",
        f"{kind}.onnx, model.safetensors, sanitize.json, report.html, report.json in it, and below",
    ]


def _next(store: Store, name: str) -> int:
    return max((int(version.version) for version in store.versions(name)), default=0) + 1 if store.exists else 1


def _work_directory(folder: Path, *, resume: bool) -> str:
    """Whether a job could write there, and what it would find.

    Raises:
        ConfigError: A job is to be resumed.
        WorkdirError: The folder cannot be written.
    """
    if resume:
        raise ConfigError("--dry-run is about a new job; leave --resume out.")
    folder = folder.absolute()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise WorkdirError(f"cannot write into the work directory {folder}. Choose another with --workdir.")
    job = folder / "job.json"
    if not job.is_file():
        return f"the work directory {folder}"
    finished = json.loads(job.read_text()).get("finished")
    return f"the work directory {folder}, in place of " + (
        "what an earlier job left there" if finished else "an unfinished job (--resume would continue that)"
    )
