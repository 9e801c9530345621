"""One purification, step by step: measure, purify, measure again, judge, export, register, report."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from sanitize.data import ImageSet
from sanitize.data.labels import training_labels
from sanitize.defenses import Need, Purified, Purifier
from sanitize.drill import Drill
from sanitize.environment import environment, tool
from sanitize.evaluation import (
    ClassifierEvaluator,
    EncoderEvaluator,
    Evaluator,
    Measurement,
    Policy,
    judge_purification,
)
from sanitize.evaluation.removal import DrillResult
from sanitize.inputs import Inputs
from sanitize.publication import Publication, described_data, described_method, record_settings
from sanitize.reporting.figures import Figure, losses, picture, projection
from sanitize.suspects import Network
from sanitize.tracking import RunRecorder, Store
from sanitize.training import Engine
from sanitize.types import RESIZE_RULE, ModelKind, Report
from sanitize.workdir import Workdir


class Purification:
    """The way of one suspect through a defence; `Sanitizer` prepares it.

    Args:
        defense: What cleans.
        policy: Thresholds of the verdict.
        engine: Device, seed, checkpoints.
        inputs: The suspect and its data.
        workdir: Where the results are written.
        drill: What is tried on copies of the suspect, or None.
    """

    def __init__(
        self,
        defense: Purifier,
        policy: Policy,
        engine: Engine,
        inputs: Inputs,
        workdir: Workdir,
        *,
        drill: Drill | None = None,
    ) -> None:
        self.defense = defense
        self.policy = policy
        self.engine = engine
        self.inputs = inputs
        self.workdir = workdir
        self.drill = drill
        self.timings: dict[str, float] = {}

    def check(self) -> None:
        """Whether all needs are met; raises before any work.

        Raises:
            SanitizeError: What is missing or does not fit.
        """
        data = self.defense.check(self._kind, self.inputs.data)
        self._data = data if data is None or Need.LABELS in self.defense.needs else data.without_labels()
        if self._data is not None and self._data.labels is not None:
            spec = self.inputs.suspect.network.spec
            training_labels(
                self._data, self.defense.name, classes=spec.output_size if spec.kind == "classifier" else None
            )
        self._evaluator = self._make_evaluator()
        self._evaluator.check(self.inputs.suspect.network.spec)
        if self.drill is not None:
            self.drill.check(
                self._kind,
                data=self._data,
                probe_data=self.inputs.probe_data,
                test_data=self.inputs.test_data,
            )

    @property
    def passes(self) -> int:
        """How many images one evaluation sends through a network; known after `check`."""
        return self._evaluator.passes

    @property
    def data(self) -> ImageSet | None:
        """What the defence is going to see; known after `check`."""
        return self._data

    def run(self, store: Store, recorder: RunRecorder) -> Report:
        """All steps; see the module."""
        suspect = self.inputs.suspect.network
        record_settings(
            recorder,
            self.defense,
            seed=self.engine.seed,
            inputs={"clean": self._data, "probe": self.inputs.probe_data, "test": self.inputs.test_data},
        )
        before, purified, after = self.work(recorder)
        drilled = self._run_drill(suspect, recorder)
        report = self._report(before, purified, after, drilled)
        report.outputs |= {"command": self._command(), "policy": self.policy.file}
        report.timings = self.timings
        publication = Publication(
            store=store,
            recorder=recorder,
            workdir=self.workdir,
            reference=self.inputs.reference,
            subject_sha256=self.inputs.tensors.sha256,
            method=self.defense.name,
            policy=self.policy.reference,
        )
        return publication.publish(purified.network, report)

    def work(self, recorder: RunRecorder | None = None) -> tuple[Measurement, Purified, Measurement]:
        """What all processes of the job do together: measure, purify, measure again.

        Args:
            recorder: Of the process that reports.
        """
        suspect = self.inputs.suspect.network
        with self._timed("evaluate-before", recorder):
            before = self._evaluator.measure(suspect, self.engine)
        with self._timed("purify"):
            purified = self.defense.purify(suspect, self._data, self.engine)
        purified.network.cpu().eval()
        with self._timed("evaluate-after", recorder):
            after = self._evaluator.measure(purified.network, self.engine, before=before)
        purified.network.cpu()
        return before, purified, after

    def _run_drill(self, suspect: Network, recorder: RunRecorder) -> DrillResult | None:
        if self.drill is None:
            return None
        with self._timed("drill", recorder):
            return self.drill.run(
                suspect, self._data, self.engine, self.workdir.checkpoints / "drill", resume=self.workdir.resume
            )

    def _make_evaluator(self) -> Evaluator:
        inputs = self.inputs
        if self._kind == "classifier":
            return ClassifierEvaluator(test_data=inputs.test_data, triggers=inputs.triggers)
        return EncoderEvaluator(
            probe_data=inputs.probe_data,
            test_data=inputs.test_data,
            triggers=inputs.triggers,
            suspect_head=inputs.suspect.old_head,
        )

    @property
    def _kind(self) -> ModelKind:
        return self.inputs.suspect.network.spec.kind

    def _report(
        self, before: Measurement, purified: Purified, after: Measurement, drilled: DrillResult | None
    ) -> Report:
        verdict, reasons = judge_purification(
            before.metrics,
            after.metrics,
            destroyed=purified.destroyed,
            policy=self.policy,
            kind=self._kind,
            drill=drilled,
        )
        return Report(
            tool=tool(),
            subject=self._subject(),
            defense=described_method(self.defense, self.policy) | ({"drill": drilled.to_dict()} if drilled else {}),
            data=described_data(
                self._data,
                probe_data=self.inputs.probe_data,
                test_data=self.inputs.test_data,
                triggers=self.inputs.triggers,
            ),
            verdict=verdict,
            reasons=reasons,
            findings=[*self.inputs.tensors.findings, *self.inputs.suspect.findings, *purified.findings],
            metrics={
                "before": before.metrics | purified.before,
                "after": after.metrics | purified.after | (drilled.metrics if drilled else {}),
            },
            unmeasured=before.unmeasured | after.unmeasured | (drilled.unmeasured if drilled else {}),
            throughput={f"{stage} images/s": history.images_per_second for stage, history in purified.history.items()},
            seed=self.engine.seed,
            environment=environment() | self.engine.settings,
            figures=tuple(self._figures(before, purified, after)),
        )

    def _subject(self) -> dict[str, Any]:
        spec = self.inputs.suspect.network.spec
        return {
            "uri": self.inputs.reference.pinned_uri,
            "kind": spec.kind,
            "architecture": spec.architecture,
            "sha256": self.inputs.tensors.sha256,
            "format": self.inputs.tensors.format,
            "normalization": spec.normalization.name,
            "image_size": spec.image_size,
            "resize": RESIZE_RULE,
            "feature_size" if spec.kind == "encoder" else "classes": spec.output_size,
            "dropped": self.inputs.suspect.dropped,
        }

    def _figures(self, before: Measurement, purified: Purified, after: Measurement) -> Iterator[Figure]:
        if before.features and after.features:
            yield projection(before.features, after.features, self._test_images())
        if purified.history:
            yield losses({stage: history.epochs for stage, history in purified.history.items()})
        for name, image in purified.pictures.items():
            yield picture(name, image, f"{name.replace('-', ' ').capitalize()} used by the defence")

    def _test_images(self) -> dict[str, Callable[[int], Tensor]]:
        """What the evaluation's features are of; a trigger whose place is random may lie elsewhere than there."""
        test, triggers = self.inputs.test_data, self.inputs.triggers
        if test is None:
            return {}
        shown: dict[str, Callable[[int], Tensor]] = {"clean": lambda row: test.images[row].float() / 255}
        if triggers:
            shown["triggered"] = lambda row: triggers[0].apply(test.images[row : row + 1].float() / 255)[0]
        return shown

    def _command(self) -> str:
        settings = [f"--set {name}={value}" for name, value in self.defense.model_dump(exclude_defaults=True).items()]
        given = [f"{option} {shlex.quote(value)}" for option, value in (*self.inputs.options, *self.policy.options)]
        start = f"sanitize {self._kind} {shlex.quote(self.inputs.reference.pinned_uri)} --method {self.defense.name}"
        drill = [f"--drill {self.drill.count}"] if self.drill else []
        return " ".join([start, *settings, *given, *drill, f"--seed {self.engine.seed}"])

    @contextmanager
    def _timed(self, stage: str, recorder: RunRecorder | None = None) -> Iterator[None]:
        started = time.perf_counter()
        if recorder is None:
            yield
        else:
            with recorder.stage(stage):
                yield
        self.timings[stage] = round(time.perf_counter() - started, 3)
