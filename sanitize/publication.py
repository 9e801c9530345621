"""From a network and its report to a registered version, an ONNX file, and the same bytes in the work directory."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from sanitize.data import ImageSet, Trigger
from sanitize.environment import environment
from sanitize.evaluation import Policy
from sanitize.export.onnx import export_onnx
from sanitize.export.package import write_package
from sanitize.method import Method
from sanitize.reporting import description, render, write
from sanitize.suspects import Network
from sanitize.tracking import Documents, ModelReference, RunRecorder, Store, deep_links, release, ui_command
from sanitize.types import Report, Verdict
from sanitize.workdir import Workdir


@dataclass(frozen=True, kw_only=True)
class Publication:
    """Where a result goes, and what it came from.

    Args:
        store: MLflow.
        recorder: The open run that made the result.
        workdir: Gets report, weights and ONNX file.
        reference: The subject of the report.
        subject_sha256: Its digest, for the metadata of the ONNX file.
        method: Name of the method.
        policy: Which policy gave the verdict: `Policy.reference`.
        name: Registered model; that of the subject when left out.
    """

    store: Store
    recorder: RunRecorder
    workdir: Workdir
    reference: ModelReference
    subject_sha256: str
    method: str
    policy: str
    name: str | None = None

    def publish(self, network: Network, report: Report) -> Report:
        """Export, register, and write the files; the report with its outputs.

        Args:
            network: The result, on the CPU.
            report: Complete but for `outputs` of the registration and the time of the export.

        Raises:
            ExportError: The network cannot be exported.
            TrackingError: The store refused; no version is left, unless the message says so.
        """
        started = time.perf_counter()
        with self.recorder.stage("export"):
            package = write_package(network, self.workdir.staging / "package")
            onnx = self.workdir.staging / f"{network.spec.kind}.onnx"
            difference = export_onnx(network, onnx, metadata=self._onnx_metadata())
        report.timings["export"] = round(time.perf_counter() - started, 3)
        report.outputs["onnx_max_difference"] = difference
        for figure in report.figures:
            self.recorder.figure(f"figures/{figure.name}.png", figure.png)
        released = release(
            self.store,
            self.recorder,
            reference=self.reference,
            method=self.method,
            policy=self.policy,
            package=package,
            onnx=onnx,
            describe=lambda model_uri: self._documents(self._with_outputs(report, model_uri, onnx.name)),
            name=self.name,
        )
        self.recorder.tags({"mlflow.note.content": description(released.report)})
        return self._deliver(replace(released.report, figures=report.figures), package, onnx)

    def _onnx_metadata(self) -> dict[str, str]:
        return {
            "sanitize.source": self.reference.pinned_uri,
            "sanitize.source_sha256": self.subject_sha256,
            "sanitize.run_id": self.recorder.run_id,
            "sanitize.method": self.method,
        }

    def _with_outputs(self, report: Report, model_uri: str, onnx: str) -> Report:
        run_id = self.recorder.run_id
        links = deep_links(self.store, experiment_id=self.recorder.experiment_id, run_id=run_id, model_uri=model_uri)
        return replace(
            report,
            outputs=report.outputs
            | {
                "model_uri": model_uri,
                "alias": "sanitized" if report.verdict is Verdict.PASS else None,
                "onnx_uri": f"runs:/{run_id}/{onnx}",
                "report_uri": f"runs:/{run_id}/report.html",
                "folder": str(self.workdir.path),
                "run_id": run_id,
                "run_url": links["run"],
                "model_url": links["version"],
                "next": [command for command in (ui_command(self.store), f"sanitize verify {model_uri}") if command],
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
        onnx.replace(folder / onnx.name)
        for file in package.iterdir():
            file.replace(folder / file.name)
        write(report, folder / "report.json")
        return report


def described(images: ImageSet | None) -> dict[str, Any] | None:
    """An image set as the report names it; None where there is none."""
    if images is None:
        return None
    classes = int(images.labels.max()) + 1 if images.labels is not None else None
    return {"uri": images.uri, "sha256": images.sha256, "images": len(images), "classes": classes}


def described_data(
    data: ImageSet | None,
    *,
    probe_data: ImageSet | None,
    test_data: ImageSet | None,
    triggers: Sequence[Trigger],
) -> dict[str, Any]:
    """All data of a job as the report names it."""
    return {
        **(described(data) or {"uri": None, "sha256": None, "images": 0, "classes": None}),
        "probe": described(probe_data),
        "test": described(test_data),
        "triggers": described_triggers(triggers),
    }


def described_triggers(triggers: Sequence[Trigger]) -> list[dict[str, Any]]:
    """Triggers as the report names them."""
    return [{"name": trigger.name, "target": trigger.target, "sha256": trigger.sha256} for trigger in triggers]


def described_method(method: Method, policy: Policy) -> dict[str, Any]:
    """A method as the report names it."""
    return {
        "name": method.name,
        "paper": method.paper.reference,
        "url": method.paper.url,
        "parameters": method.parameters(),
        "policy": policy.model_dump(),
    }


def record_settings(recorder: RunRecorder, method: Method, *, seed: int, inputs: Mapping[str, ImageSet | None]) -> None:
    """Parameters, resolved recipe, environment and data sets into the run.

    Args:
        recorder: The open run.
        method: What is going to work.
        seed: Source of all randomness.
        inputs: What a data set is for (``clean``, ``probe``, ``test`` ...) -> the set, or None.
    """
    parameters = {name: item["value"] for name, item in method.parameters().items()}
    recorder.params({"method": method.name, "seed": seed} | parameters)
    recipe = {"method": method.name, "summary": "as resolved for this run", "parameters": parameters}
    recorder.text("recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))
    recorder.text("environment.json", json.dumps(environment(), indent=2))
    for context, images in inputs.items():
        if images is not None:
            recorder.input(images, context)
