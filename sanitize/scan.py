"""Looking without touching: what a model's files would do, and whether it behaves as clean models do."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from sanitize.data import ImageSet
from sanitize.detection.model import ModelDetector
from sanitize.environment import environment, tool
from sanitize.errors import ConfigError, DataError
from sanitize.evaluation import Policy, judge_scan
from sanitize.functional.null import exceedance
from sanitize.inputs import Inputs, Request, gather
from sanitize.publication import described_data, described_method, record_settings
from sanitize.reporting import render
from sanitize.reporting.figures import Figure, picture
from sanitize.suspects import Network
from sanitize.tracking import RunRecorder, Store, deep_links
from sanitize.training import Display, Engine, require_one_process
from sanitize.types import RESIZE_RULE, Finding, Metrics, Report, Severity


class Scan:
    """Examines a model from the registry; changes and registers nothing.

    The detector's measures are compared with those of clean reference models, which the user names: there is no
    number that is suspicious by itself.

    Args:
        detector: What is measured.
        device: As in `Sanitizer`.
        precision: As in `Sanitizer`.
        seed: Source of all randomness; the same for suspect and references.
        tracking_uri: MLflow; its own default when left out.
        policy: False-alarm rate, and how many references are needed.
        display: Shows progress; silent when left out.

    Example:
        >>> from sanitize.detection.collapse import FeatureCollapse
        >>> Scan(FeatureCollapse(), seed=1).seed
        1
    """

    def __init__(
        self,
        detector: ModelDetector,
        *,
        device: str = "auto",
        precision: str = "32-true",
        seed: int = 0,
        tracking_uri: str | None = None,
        policy: Policy | None = None,
        display: Display | None = None,
    ) -> None:
        require_one_process("a scan")
        self.detector = detector
        self.device = device
        self.precision = precision
        self.seed = seed
        self.tracking_uri = tracking_uri
        self.policy = policy or Policy()
        self.display = display or Display(quiet=True)

    def run(self, request: Request, references: Sequence[str] = ()) -> Report:
        """Look at one model.

        Args:
            request: The suspect and the clean images.
            references: URIs of models that are known to be clean, of the suspect's architecture.

        Returns:
            The report; it is in the MLflow run, too.

        Raises:
            SanitizeError: Something is missing, unsafe, unfit or out of reach.
        """
        store = Store(self.tracking_uri)
        engine = Engine(device=self.device, precision=self.precision, seed=self.seed, display=self.display)
        with TemporaryDirectory() as folder:
            inputs, data, clean = self.prepare(request, references, store, Path(folder))
            name = f"scan {request.model.removeprefix('models:/')}"
            with RunRecorder(store, name=name) as recorder:
                engine.recorder = recorder
                return self._examine(inputs, data, clean, references, engine, store, recorder)

    def prepare(
        self, request: Request, references: Sequence[str], store: Store, folder: Path
    ) -> tuple[Inputs, ImageSet, list[Network]]:
        """Read the suspect, the images and the references, and check all of it.

        Returns:
            The suspect, the clean images without labels, the references.

        Raises:
            SanitizeError: Something is missing, unsafe, unfit or out of reach.
        """
        inputs = gather(request, store, folder / "suspect")
        if inputs.data is None:
            raise DataError("a scan needs clean images; give --data, or bind data with `sanitize bind`.")
        self.detector.require(inputs.suspect.network, inputs.data)
        clean = [
            self._reference(uri, request, inputs, store, folder / f"reference{number}")
            for number, uri in enumerate(references)
        ]
        return inputs, inputs.data.without_labels(), clean

    def _reference(self, uri: str, request: Request, inputs: Inputs, store: Store, folder: Path) -> Network:
        spec = inputs.suspect.network.spec
        asked = replace(request, model=uri, data=None, probe_data=None, test_data=None, triggers=(), kind=spec.kind)
        found = gather(asked, store, folder)
        if found.tensors.sha256 == inputs.tensors.sha256:
            raise ConfigError(f"--reference {uri} has the weights of the suspect: it says nothing about clean models.")
        if found.suspect.network.spec.architecture != spec.architecture:
            raise ConfigError(
                f"--reference {uri} is a {found.suspect.network.spec.architecture}, and the suspect a "
                f"{spec.architecture}: their measures cannot be compared."
            )
        return found.suspect.network

    def _examine(
        self,
        inputs: Inputs,
        data: ImageSet,
        clean: Sequence[Network],
        references: Sequence[str],
        engine: Engine,
        store: Store,
        recorder: RunRecorder,
    ) -> Report:
        record_settings(recorder, self.detector, seed=self.seed, inputs={"clean": data})
        started = time.perf_counter()
        evidence = self.detector.examine(inputs.suspect.network, data, engine)
        seen = [self.detector.examine(network, data, engine).metrics for network in clean]
        seconds = round(time.perf_counter() - started, 3)
        chances, unmeasured = self._chances(evidence.metrics, seen)
        artifact = [*inputs.tensors.findings, *inputs.suspect.findings]
        verdict, reasons = judge_scan(chances, len(clean), artifact, self.policy)
        spec = inputs.suspect.network.spec
        report = Report(
            tool=tool(),
            subject={
                "uri": inputs.reference.pinned_uri,
                "kind": spec.kind,
                "architecture": spec.architecture,
                "sha256": inputs.tensors.sha256,
                "format": inputs.tensors.format,
                "normalization": spec.normalization.name,
                "image_size": spec.image_size,
                "resize": RESIZE_RULE,
                "references": list(references),
            },
            defense=described_method(self.detector, self.policy),
            data=described_data(data, probe_data=None, test_data=None, triggers=()),
            verdict=verdict,
            reasons=reasons,
            findings=[*artifact, *evidence.findings, *self._alarms(evidence.metrics, seen, chances)],
            metrics={"before": evidence.metrics | _named(chances), "after": {}},
            unmeasured=evidence.unmeasured | unmeasured,
            timings={"examine": seconds},
            seed=self.seed,
            environment=environment() | engine.settings,
            figures=tuple(_figures(evidence.pictures)),
        )
        links = deep_links(store, experiment_id=recorder.experiment_id, run_id=recorder.run_id, model_uri=None)
        report.outputs |= {
            "run_id": recorder.run_id,
            "run_url": links["run"],
            "report_uri": f"runs:/{recorder.run_id}/report.html",
            "command": self._command(inputs, references),
            "policy": self.policy.file,
        }
        for figure in report.figures:
            recorder.figure(f"figures/{figure.name}.png", figure.png)
        recorder.text("report.json", report.to_json())
        recorder.text("report.html", render(report, "html", figures=report.figures))
        recorder.tags(
            {
                "sanitize.verdict": str(verdict),
                "sanitize.method": self.detector.name,
                "sanitize.policy": self.policy.reference,
            }
        )
        return report

    def _chances(self, metrics: Metrics, references: Sequence[Metrics]) -> tuple[dict[str, float], dict[str, str]]:
        """Chance of each alarming measure among clean models; and why it is not known, where it is not."""
        chances, unknown = {}, {}
        for name, side in self.detector.alarming.items():
            value = metrics.get(name)
            null = [number for one in references if (number := one.get(name)) is not None]
            if value is not None and len(null) >= 2:
                chances[name] = exceedance(value, null, side)
            else:
                unknown[f"chance/{name}"] = "it takes two clean references or more (--reference) and a measured value"
        return chances, unknown

    def _alarms(self, metrics: Metrics, references: Sequence[Metrics], chances: dict[str, float]) -> list[Finding]:
        limit = self.policy.false_alarm_rate / max(1, len(chances))
        enough = len(references) >= self.policy.minimum_references
        return [
            Finding(
                rule=f"{self.detector.name}-out-of-line",
                severity=Severity.ERROR if enough else Severity.WARNING,
                message=f"{name} is {metrics[name]:.3g}; clean references have "
                f"{', '.join(f'{one[name]:.3g}' for one in references if one.get(name) is not None)}.",
                evidence={"measure": name, "value": metrics[name], "chance": chance, "references": len(references)},
            )
            for name, chance in chances.items()
            if chance < limit
        ]

    def _command(self, inputs: Inputs, references: Sequence[str]) -> str:
        given = [*inputs.options, *(("--reference", uri) for uri in references), *self.policy.options]
        settings = [f"--set {name}={value}" for name, value in self.detector.model_dump(exclude_defaults=True).items()]
        options = [f"{option} {shlex.quote(value)}" for option, value in given]
        start = f"sanitize scan {shlex.quote(inputs.reference.pinned_uri)} --method {self.detector.name}"
        return " ".join([start, *settings, *options, f"--seed {self.seed}"])


def _named(chances: dict[str, float]) -> Metrics:
    return {f"chance/{name}": chance for name, chance in chances.items()}


def _figures(pictures: dict[str, Tensor]) -> list[Figure]:
    return [
        picture(name, image, f"{name.replace('-', ' ').capitalize()} found in the suspect")
        for name, image in pictures.items()
    ]
