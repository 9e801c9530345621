"""What a data-set job publishes: its report, a score an image, the rows that were flagged, and what is left."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sanitize.dataset_findings import data_findings
from sanitize.dataset_inputs import DatasetInputs
from sanitize.detection import DataDetector, Scores, Split
from sanitize.detection.window_search import WindowScores
from sanitize.environment import environment, tool
from sanitize.evaluation import Policy
from sanitize.evaluation.filtering import judge_data, measure_filtering, measure_windows
from sanitize.publication import described_data, described_method
from sanitize.reporting import description, render, write
from sanitize.reporting.evidence import pictures
from sanitize.reporting.wording import plain
from sanitize.tracking import RunRecorder, Store, deep_links, ui_command
from sanitize.tracking.clean_data import release_data
from sanitize.trainers import Trainer
from sanitize.training import Engine
from sanitize.types import RESIZE_RULE, Report, Verdict
from sanitize.workdir import Workdir

SCORES_FILE, FLAGGED_FILE, CLEAN_FILE = "scores.parquet", "flagged.txt", "images.parquet"


@dataclass(frozen=True, kw_only=True)
class DatasetPublication:
    """From the scores and the decision to files, a run and a registered version.

    Args:
        detector: What scored and decided.
        training: What trained the threat model, where none was given.
        inputs: The data and the network.
        engine: Device and seed.
        store: MLflow.
        recorder: The open run.
        workdir: Gets the same files.
    """

    detector: DataDetector
    training: Trainer
    inputs: DatasetInputs
    engine: Engine
    store: Store
    recorder: RunRecorder
    workdir: Workdir

    def report(
        self,
        scores: Scores,
        split: Split,
        *,
        command: str,
        timings: Mapping[str, float],
        training_accuracy: float | None,
    ) -> Report:
        """Measures, verdict and findings; nothing is written.

        Args:
            scores: Of the images.
            split: The decision.
            command: That does the same again.
            timings: Seconds of the stages so far.
            training_accuracy: Of a classifier that was trained for the occasion; else None.
        """
        measured = measure_filtering(scores, split.poisoned, self.inputs.poisoned)
        if isinstance(scores, WindowScores):
            located = measure_windows(scores, self.inputs.poisoned, self.inputs.boxes)
            measured.metrics |= located.metrics
            measured.unmeasured |= located.unmeasured
        verdict, reasons = judge_data(split, self.inputs.poisoned, suspect=self.inputs.suspect is not None)
        if missing := len(self.inputs.data.unreadable):
            reasons.append(f"{missing} images cannot be read, and were not examined")
            verdict = Verdict.INCONCLUSIVE if verdict is Verdict.PASS else verdict
        if training_accuracy is not None and not bool(split.poisoned.any()):
            reasons.append(
                f"the network that was trained here is right on {training_accuracy:.1%} of its images; a backdoor "
                "that it has not learned is not seen: other settings (--train-set) or a suspect (--model) may show it"
            )
        suspect, data = self.inputs.suspect, self.inputs.data
        return Report(
            tool=tool(),
            subject=self._subject(),
            defense=described_method(self.detector, Policy()),
            data=described_data(data, probe_data=None, test_data=None, triggers=()),
            verdict=verdict,
            reasons=reasons,
            findings=[
                *(suspect.tensors.findings if suspect else ()),
                *(suspect.suspect.findings if suspect else ()),
                *data_findings(data, split),
            ],
            metrics={
                "before": {},
                "after": measured.metrics | dict(split.numbers) | self._of_training(training_accuracy),
            },
            unmeasured=measured.unmeasured,
            outputs={
                "data_uri": None,
                "removed": int(split.poisoned.sum()),
                "kept": len(data) - int(split.poisoned.sum()),
                "scores_uri": f"runs:/{self.recorder.run_id}/{SCORES_FILE}",
                "flagged_uri": f"runs:/{self.recorder.run_id}/{FLAGGED_FILE}",
                "command": command,
            },
            throughput={"score images/s": round(len(data) / max(timings["score"], 1e-3), 1)},
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
                "training": None if suspect else repr(self.training),
                "kind": spec.kind,
                "architecture": spec.architecture,
                "normalization": spec.normalization.name,
                "image_size": spec.image_size,
                "resize": RESIZE_RULE,
            },
        }

    def _of_training(self, accuracy: float | None) -> dict[str, float | None]:
        if self.inputs.suspect or self.inputs.network.spec.kind == "encoder":
            return {}
        return {"threat_model_accuracy": accuracy}

    def write_scores(self, scores: Scores, split: Split) -> None:
        """Scores and flagged rows into the work directory and the run; rows are those of the data as it was given."""
        data = self.inputs.data
        decisions = ["clean" if c else "poisoned" if p else "uncertain" for c, p in _pairs(split)]
        columns = {"index": data.rows.numpy(), "score": scores.values.numpy(), "decision": decisions}
        columns |= {name: values.numpy() for name, values in scores.columns.items()}
        if scores.labels is not None:
            columns["label"] = scores.labels.numpy()
        missing = [picture.row for picture in data.unreadable]
        left_out = pa.table({"index": missing, "decision": ["unreadable"] * len(missing)})
        table = pa.concat_tables([pa.table(columns), left_out], promote_options="default")
        pq.write_table(table.sort_by("index"), self.workdir.path / SCORES_FILE)
        lines = [f"# rows of {data.uri}", *map(str, data.rows[split.poisoned].tolist())]
        lines += [f"# row {picture.row} cannot be read: {plain(str(picture))}" for picture in data.unreadable]
        (self.workdir.path / FLAGGED_FILE).write_text("\n".join(lines) + "\n")
        for file in (SCORES_FILE, FLAGGED_FILE):
            self.recorder.file(self.workdir.path / file)

    def release(self, report: Report, split: Split) -> str:
        """Register the images that stay; ``models:/NAME/VERSION``.

        Raises:
            TrackingError: The store refused; no version is left, unless the message says so.
        """
        data = self.inputs.data
        stays = torch.zeros(len(data) + len(data.unreadable), dtype=torch.bool)
        stays[data.rows[~split.poisoned]] = True
        return release_data(
            self.store,
            self.recorder,
            self.inputs.original.write(stays, self.workdir.staging / CLEAN_FILE),
            name=self.inputs.name,
            parent=self.inputs.data.uri,
            reference=self.inputs.reference,
            method=self.detector.name,
            verdict=report.verdict,
            description=description(report),
        )

    def deliver(self, report: Report) -> Report:
        """Report and figures into the run and the work directory."""
        recorder = self.recorder
        uri = report.outputs["data_uri"]
        links = deep_links(
            self.store, experiment_id=recorder.experiment_id, run_id=recorder.run_id, model_uri=uri or None
        )
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
                "sanitize.method": self.detector.name,
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
        if self.inputs.data.unreadable:  # `sanitize classifier` would refuse the data
            return []
        flagged = shlex.quote(str(self.workdir.path / FLAGGED_FILE))
        return [
            f"sanitize classifier {shlex.quote(suspect.reference.pinned_uri)} --method d-br "
            f"--data {shlex.quote(self.inputs.data.uri)} --suspected {flagged}"
        ]


def _pairs(split: Split) -> Iterator[tuple[bool, bool]]:
    return zip(split.clean.tolist(), split.poisoned.tolist(), strict=True)
