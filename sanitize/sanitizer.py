"""The facade: `Sanitizer(defense="bmaiu").run("models:/suspect/1")`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from sanitize.defenses import Defense, Purifier, defense_named
from sanitize.drill import Drill
from sanitize.errors import ConfigError
from sanitize.evaluation import Policy
from sanitize.inputs import Inputs, Request, gather
from sanitize.job import Job
from sanitize.purification import Purification
from sanitize.tracking import RunRecorder, Store, mark_interrupted
from sanitize.training import Display, Engine, require_splittable, world
from sanitize.types import ModelKind, Report
from sanitize.workdir import DEFAULT_PARENT, Workdir

SPLITTABLE = frozenset({"bmaiu", "d-br", "distill", "fine-tune", "nad", "neural-cleanse", "ssl-cleanse", "uau"})
"""Defences that several processes may do together: whatever they train or ask gives rows for the rows of one batch
(docs/scaling.md)."""


class Sanitizer(Job):
    """Runs a defence on a model from an MLflow registry, and writes the result back.

    Args:
        defense: A name (`sanitize methods` lists them), or an instance with its hyperparameters.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: A Lightning Fabric precision, for example ``bf16-mixed``.
        strategy: A Lightning Fabric strategy; with several processes ``auto`` or ``ddp``.
        devices: Processes on each machine, each with a device of its own, for defences in `SPLITTABLE`. When left out
            as torchrun or srun has started them, else one. All processes get the same report.
        num_nodes: Machines; likewise.
        seed: Source of all randomness.
        tracking_uri: MLflow; its own default when left out.
        workdir: Checkpoints and results of the job; a folder below ``.sanitize`` when left out.
        resume: Continue the interrupted job in the work directory.
        policy: Thresholds of the verdict.
        drill: How many canaries are planted in copies of the suspect and purified, to learn how often this defence
            removes one; see `sanitize.drill.Drill`. None for no drill.
        display: Shows progress; silent when left out.

    Raises:
        ConfigError: The defence is unknown, or not one that purifies a model; or the drill cannot be done with it, or
            not by several processes.

    Example:
        >>> Sanitizer(defense="bmaiu", seed=1).defense.name
        'bmaiu'
    """

    def __init__(
        self,
        defense: str | Defense,
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
        drill: int | None = None,
        display: Display | None = None,
    ) -> None:
        made = defense_named(defense)() if isinstance(defense, str) else defense
        if not isinstance(made, Purifier):
            raise ConfigError(f"{made.name} does not purify a model; `sanitize methods` lists what each method does.")
        self.defense: Purifier = made
        self.device = device
        self.precision = precision
        self.strategy = strategy
        self.devices, self.num_nodes = world(devices, num_nodes)
        require_splittable(made.name, SPLITTABLE, self.devices, self.num_nodes)
        self.seed = seed
        self.tracking_uri = tracking_uri
        self.workdir = Path(workdir) if workdir else None
        self.resume = resume
        self.policy = policy or Policy()
        self.drill = None if drill is None else Drill(drill, made, self.policy)
        self.display = display or Display(quiet=True)

    def run(
        self,
        model: str,
        *,
        data: str | None = None,
        probe_data: str | None = None,
        test_data: str | None = None,
        triggers: Sequence[str | Path] = (),
        arch: str | None = None,
        normalization: str | None = None,
        image_size: int | None = None,
        allow_stubbed: bool = False,
        kind: ModelKind | None = None,
        suspected: str | Path | None = None,
    ) -> Report:
        """Clean an encoder or a classifier: purify, judge, export, register.

        Args:
            model: ``models:/name/1``, ``models:/name@alias``, ``models:/m-...`` or ``runs:/id/path``.
            data: Images for the defence. This and the following are taken from the binding of the registered
                model where they are left out.
            probe_data: Labelled images for the linear probe of an encoder.
            test_data: Labelled images for the evaluation.
            triggers: Known triggers, for the evaluation only.
            arch: Architecture.
            normalization: Name of the normalization.
            image_size: Pixels.
            allow_stubbed: Read pickles that name unknown classes, as inert stubs.
            kind: ``encoder`` or ``classifier``; the bound kind, or the only one that the defence works on, when left
                out.
            suspected: File with the rows of `data` that are guessed to be poisoned (text, .json or .npy); for
                defences that use such a guess.

        Returns:
            The report; it is also in the work directory and in the MLflow run.

        Raises:
            SanitizeError: Something is missing, unsafe, unfit or out of reach. Nothing is registered then.
        """
        request = Request(
            model=model,
            kind=kind or self._only_kind,
            suspected=suspected,
            data=data,
            probe_data=probe_data,
            test_data=test_data,
            triggers=triggers,
            arch=arch,
            normalization=normalization,
            image_size=image_size,
            allow_stubbed=allow_stubbed,
        )
        engine = self._engine(self.folder(model))
        return engine.processes.report(lambda: self._lead(request, engine), lambda: self._follow(request, engine))

    def _lead(self, request: Request, engine: Engine) -> Report:
        """What one process does, or the first of several."""
        with Workdir(self.folder(request.model), resume=self.resume) as workdir:
            store = Store(self.tracking_uri)
            purification = self.prepare(request, store, workdir, engine)
            fingerprint = self._fingerprint(purification.inputs)
            if finished := workdir.finished_report(fingerprint):
                self.display.say(f"This job is finished already; its report is {finished}.")
                engine.processes.tell("job", None)
                return Report.from_dict(json.loads(finished.read_text()))
            run_id = workdir.begin(fingerprint)
            if workdir.interrupted_run:
                mark_interrupted(store, workdir.interrupted_run)
                self.display.say("The unfinished job in the work directory is dropped; --resume would continue it.")
            with RunRecorder(
                store, name=f"{self.defense.name} {request.model.removeprefix('models:/')}", run_id=run_id
            ) as recorder:
                workdir.remember_run(recorder.run_id)
                engine.recorder = recorder
                engine.processes.tell("job", fingerprint)
                report = purification.run(store, recorder)
            workdir.finish()
        return report

    def _follow(self, request: Request, engine: Engine) -> None:
        """What the other processes do: read the same, work with the first one, write nothing."""
        fingerprint = engine.processes.hear("job")
        if fingerprint is not None:
            with TemporaryDirectory() as folder, Workdir(Path(folder)) as workdir:
                purification = self.prepare(request, Store(self.tracking_uri), workdir, engine)
                engine.processes.require_same_job(fingerprint, self._fingerprint(purification.inputs))
                purification.work()

    def folder(self, model: str) -> Path:
        """Work directory of a job on this model."""
        return self.workdir or Path(DEFAULT_PARENT) / _slug(f"{model}-{self.defense.name}")

    def prepare(self, request: Request, store: Store, workdir: Workdir, engine: Engine) -> Purification:
        """Read the suspect and the data, and check all of it.

        Raises:
            SanitizeError: Something is missing, unsafe, unfit or out of reach.
        """
        inputs = gather(request, store, workdir.quarantine)
        purification = Purification(self.defense, self.policy, engine, inputs, workdir, drill=self.drill)
        purification.check()
        return purification

    @property
    def _only_kind(self) -> ModelKind | None:
        """The kind of model that the defence works on, where that is one."""
        return next(iter(self.defense.kinds)) if len(self.defense.kinds) == 1 else None

    def _fingerprint(self, inputs: Inputs) -> dict[str, str]:
        return inputs.fingerprint | {
            "method": repr(self.defense),
            "policy": repr(self.policy),
            "seed": str(self.seed),
            "precision": self.precision,
            "drill": str(self.drill.count if self.drill else 0),
        }


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text.removeprefix("models:/")).strip("-")
