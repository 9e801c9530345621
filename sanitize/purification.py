"""One purification, step by step: measure, purify, measure again, judge, export, register, report."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from sanitize.data import ImageSet
from sanitize.defenses import Need, Purified, Purifier
from sanitize.environment import environment, tool
from sanitize.evaluation import EncoderEvaluator, Measurement, Policy, judge_purification
from sanitize.export.onnx import export_onnx
from sanitize.export.package import write_package
from sanitize.inputs import Inputs
from sanitize.reporting import description, render, write
from sanitize.reporting.figures import Figure, losses, picture, projection
from sanitize.tracking import Documents, RunRecorder, Store, deep_links, release, ui_command
from sanitize.training import Engine
from sanitize.types import RESIZE_RULE, Report, Verdict
from sanitize.workdir import Workdir


class Purification:
    """The way of one suspect through a defence; `Sanitizer` prepares it.

    Args:
        defense: What cleans.
        policy: Thresholds of the verdict.
        engine: Device, seed, checkpoints.
        inputs: The suspect and its data.
        workdir: Where the results are written.
    """

    def __init__(self, defense: Purifier, policy: Policy, engine: Engine, inputs: Inputs, workdir: Workdir) -> None:
        self.defense = defense
        self.policy = policy
        self.engine = engine
        self.inputs = inputs
        self.workdir = workdir
        self.timings: dict[str, float] = {}

    def check(self) -> None:
        """Whether all needs are met; raises before any work.

        Raises:
            SanitizeError: What is missing or does not fit.
        """
        data = self.defense.check(self.inputs.suspect.network.spec.kind, self.inputs.data)
        self._data = data if Need.LABELS in self.defense.needs else data.without_labels()
        self._evaluator = EncoderEvaluator(
            probe_data=self.inputs.probe_data, test_data=self.inputs.test_data, triggers=self.inputs.triggers
        )

    def run(self, store: Store, recorder: RunRecorder) -> Report:
        """All steps; see the module."""
        suspect, head = self.inputs.suspect.network, self.inputs.suspect.old_head
        self._record_inputs(recorder)
        with self._timed("evaluate-before", recorder):
            before = self._evaluator.measure(suspect, self.engine, suspect_head=head)
        with self._timed("purify"):
            purified = self.defense.purify(suspect, self._data, self.engine)
        network = purified.network.cpu().eval()
        with self._timed("evaluate-after", recorder):
            after = self._evaluator.measure(network, self.engine, old_head=before.probe, suspect_head=head)
        network.cpu()
        report = self._report(before, purified, after)
        with self._timed("export", recorder):
            package = write_package(network, self.workdir.staging / "package")
            onnx = self.workdir.staging / "encoder.onnx"
            difference = export_onnx(network, onnx, metadata=self._onnx_metadata(recorder))
        report.outputs |= {"onnx_max_difference": difference, "command": self._command()}
        report.timings = self.timings
        for figure in report.figures:
            recorder.figure(f"figures/{figure.name}.png", figure.png)
        released = release(
            store,
            recorder,
            reference=self.inputs.reference,
            method=self.defense.name,
            policy=self.policy.name,
            package=package,
            onnx=onnx,
            describe=lambda model_uri: self._documents(self._with_outputs(report, model_uri, store, recorder)),
        )
        recorder.tags({"mlflow.note.content": description(released.report)})
        return self._deliver(replace(released.report, figures=report.figures), package, onnx)

    def _record_inputs(self, recorder: RunRecorder) -> None:
        parameters = {name: item["value"] for name, item in self.defense.parameters().items()}
        recorder.params({"method": self.defense.name, "seed": self.engine.seed} | parameters)
        recipe = {"method": self.defense.name, "summary": "as resolved for this run", "parameters": parameters}
        recorder.text("recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))
        recorder.text("environment.json", json.dumps(environment(), indent=2))
        for context, images in (
            ("clean", self._data),
            ("probe", self.inputs.probe_data),
            ("test", self.inputs.test_data),
        ):
            if images is not None:
                recorder.input(images, context)

    def _report(self, before: Measurement, purified: Purified, after: Measurement) -> Report:
        verdict, reasons = judge_purification(
            before.metrics, after.metrics, destroyed=purified.destroyed, policy=self.policy
        )
        return Report(
            tool=tool(),
            subject=self._subject(),
            defense={
                "name": self.defense.name,
                "paper": self.defense.paper.reference,
                "url": self.defense.paper.url,
                "parameters": self.defense.parameters(),
                "policy": self.policy.model_dump(),
            },
            data=self._described(self._data)
            | {
                name: self._described(images) if images is not None else None
                for name, images in (("probe", self.inputs.probe_data), ("test", self.inputs.test_data))
            }
            | {
                "triggers": [
                    {"name": trigger.name, "target": trigger.target, "sha256": trigger.sha256}
                    for trigger in self.inputs.triggers
                ]
            },
            verdict=verdict,
            reasons=reasons,
            findings=[*self.inputs.tensors.findings, *self.inputs.suspect.findings, *purified.findings],
            metrics={
                "before": before.metrics | purified.before,
                "after": after.metrics | purified.after,
            },
            unmeasured=before.unmeasured | after.unmeasured,
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
            "feature_size": spec.output_size,
            "dropped": self.inputs.suspect.dropped,
        }

    @staticmethod
    def _described(images: ImageSet) -> dict[str, Any]:
        classes = int(images.labels.max()) + 1 if images.labels is not None else None
        return {"uri": images.uri, "sha256": images.sha256, "images": len(images), "classes": classes}

    @staticmethod
    def _figures(before: Measurement, purified: Purified, after: Measurement) -> Iterator[Figure]:
        if before.features and after.features:
            yield projection(before.features, after.features)
        yield losses({stage: history.epochs for stage, history in purified.history.items()})
        for name, image in purified.pictures.items():
            yield picture(name, image, f"{name.replace('-', ' ').capitalize()} used by the defence")

    def _onnx_metadata(self, recorder: RunRecorder) -> dict[str, str]:
        return {
            "sanitize.source": self.inputs.reference.pinned_uri,
            "sanitize.source_sha256": self.inputs.tensors.sha256,
            "sanitize.run_id": recorder.run_id,
            "sanitize.method": self.defense.name,
        }

    def _with_outputs(self, report: Report, model_uri: str, store: Store, recorder: RunRecorder) -> Report:
        links = deep_links(store, experiment_id=recorder.experiment_id, run_id=recorder.run_id, model_uri=model_uri)
        return replace(
            report,
            outputs=report.outputs
            | {
                "model_uri": model_uri,
                "alias": "sanitized" if report.verdict is Verdict.PASS else None,
                "onnx_uri": f"runs:/{recorder.run_id}/encoder.onnx",
                "report_uri": f"runs:/{recorder.run_id}/report.html",
                "folder": str(self.workdir.path),
                "run_id": recorder.run_id,
                "run_url": links["run"],
                "model_url": links["version"],
                "next": [command for command in (ui_command(store), f"sanitize verify {model_uri}") if command],
            },
        )

    @staticmethod
    def _documents(report: Report) -> Documents:
        return Documents(
            report_json=report.to_json(),
            report_html=render(report, "html", figures=report.figures),
            description=description(report),
            verdict=report.verdict,
        )

    def _deliver(self, report: Report, package: Path, onnx: Path) -> Report:
        """The results into the work directory: the same bytes as in the run."""
        folder = self.workdir.path
        write(report, folder / "report.html", figures=report.figures)
        onnx.replace(folder / "encoder.onnx")
        for file in package.iterdir():
            file.replace(folder / file.name)
        write(report, folder / "report.json")
        return report

    def _command(self) -> str:
        settings = [f"--set {name}={value}" for name, value in self.defense.model_dump(exclude_defaults=True).items()]
        given = [f"{option} {shlex.quote(value)}" for option, value in self.inputs.options]
        uri = shlex.quote(self.inputs.reference.pinned_uri)
        return " ".join(
            ["sanitize encoder", uri, f"--method {self.defense.name}", *settings, *given, f"--seed {self.engine.seed}"]
        )

    @contextmanager
    def _timed(self, stage: str, recorder: RunRecorder | None = None) -> Iterator[None]:
        started = time.perf_counter()
        if recorder is None:
            yield
        else:
            with recorder.stage(stage):
                yield
        self.timings[stage] = round(time.perf_counter() - started, 3)
