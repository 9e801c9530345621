"""One decision about one version: examined or remembered, tagged, and the alias moved."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sanitize.defenses import Purifier
from sanitize.detection.collapse import FeatureCollapse
from sanitize.detection.model import ModelDetector
from sanitize.errors import ArtifactError, ConfigError, SanitizeError, TrackingError
from sanitize.gate import records
from sanitize.gate.decision import APPROVED_ALIAS, Decided, Decision, decide
from sanitize.gate.identity import identity_of_model, identity_of_policy, identity_of_request
from sanitize.gate.promotion import Promotion
from sanitize.gate.records import Record
from sanitize.gate.waivers import Waiver
from sanitize.inputs import Request, complete
from sanitize.policies import Policy
from sanitize.sanitizer import Sanitizer
from sanitize.scan import Scan
from sanitize.tracking import ModelReference, Store, binding_of, verify
from sanitize.training import Display, require_one_process
from sanitize.types import Report, Verdict


class Gate:
    """Examines a version, decides by a policy, tags it, and moves the alias ``approved``.

    The same model, data, references, policy and settings give the stored verdict at once. Waivers are applied anew each
    time, so that an approval ends with the waiver it rests on.

    Args:
        policy: Thresholds of the verdict.
        detector: What the scan measures.
        defense: Purifies a model that does not pass; what comes out is approved when *it* passes. None to leave it.
        waivers: See `sanitize.gate.waivers`.
        references: URIs of models that are known to be clean, of the suspect's architecture.
        approve_into: Registered model that gets a copy of what is approved; None approves it where it is.
        alias: The alias that is moved.
        device: As in `Sanitizer`.
        precision: As in `Sanitizer`.
        seed: As in `Sanitizer`.
        tracking_uri: As in `Sanitizer`.
        display: As in `Sanitizer`.

    Example:
        >>> Gate(alias="production").alias
        'production'
    """

    def __init__(
        self,
        *,
        policy: Policy | None = None,
        detector: ModelDetector | None = None,
        defense: Purifier | None = None,
        waivers: Sequence[Waiver] = (),
        references: Sequence[str] = (),
        approve_into: str | None = None,
        alias: str = APPROVED_ALIAS,
        device: str = "auto",
        precision: str = "32-true",
        seed: int = 0,
        tracking_uri: str | None = None,
        display: Display | None = None,
    ) -> None:
        require_one_process("a gate")
        self.policy = policy or Policy()
        self.detector = detector or FeatureCollapse()
        self.defense = defense
        self.waivers = tuple(waivers)
        self.references = tuple(references)
        self.alias = alias
        self.device = device
        self.precision = precision
        self.seed = seed
        self.tracking_uri = tracking_uri
        self.display = display or Display(quiet=True)
        self.store = Store(tracking_uri)
        self.promotion = Promotion(self.store, alias, approve_into)

    def run(self, request: Request) -> Report:
        """Decide about one version.

        Args:
            request: The version; data and architecture are those that are bound, where they are left out.

        Returns:
            The report of the scan, with the decision in its `outputs` and the waivers among its findings.

        Raises:
            SanitizeError: Something is missing, unsafe, unfit or out of reach. A version whose files are refused is
                tagged as rejected, and loses the alias.
        """
        started = time.perf_counter()
        reference = self.store.resolve(request.model)
        if reference.name is None or reference.version is None:
            raise ConfigError(f"{request.model}: the gate decides about versions; give models:/NAME/VERSION or @ALIAS.")
        request = replace(request, model=reference.pinned_uri)  # an alias may move while this works
        with TemporaryDirectory() as folder:
            try:
                parts = self._parts(request, reference, Path(folder))
                key = records.key_of(parts)
                record = records.find(self.store, key)
                remembered = record is not None
                record = record or self._examine(request, parts["model"], Path(folder))
            except ArtifactError as error:
                self.promotion.refuse(reference, str(error))
                raise
        decided = decide(
            record.scan,
            self.waivers,
            cleaned=record.cleaned is not None and record.cleaned["verdict"] == Verdict.PASS,
            references=self.policy.minimum_references,
            today=datetime.now(UTC).date(),
        )
        decided.report.outputs["remembered"] = remembered
        return self._carry_out(reference, parts, key, record, decided, started)

    def _parts(self, request: Request, reference: ModelReference, folder: Path) -> dict[str, Any]:
        binding = binding_of(self.store, reference.name or "", folder / "binding")
        asked = complete(request, binding)
        return identity_of_request(self.store, asked, folder) | {
            "model": identity_of_model(self.store, reference.pinned_uri, folder / "model"),
            "references": sorted(
                identity_of_model(self.store, uri, folder / f"reference{number}")
                for number, uri in enumerate(self.references)
            ),
            "policy": identity_of_policy(self.policy),
            "detector": repr(self.detector),
            "defense": f"{self.defense.name} {self.defense!r}" if self.defense else "",
            "seed": self.seed,
            "precision": self.precision,
            "sanitize": version("model-sanitizer"),
        }

    def _examine(self, request: Request, sha256: str, folder: Path) -> Record:
        scan = Scan(
            self.detector,
            device=self.device,
            precision=self.precision,
            seed=self.seed,
            tracking_uri=self.tracking_uri,
            policy=self.policy,
            display=self.display,
        )
        report = scan.run(request, self.references)
        if report.subject["sha256"] != sha256:
            raise TrackingError(
                f"{request.model} changed while the gate looked at it: {sha256[:12]} and then "
                f"{report.subject['sha256'][:12]}. Find out who writes to its files, and run the gate again."
            )
        if self.defense is None or report.verdict is Verdict.PASS:
            return Record(report)
        return Record(report, self._purify(self.defense, request, folder))

    def _purify(self, defense: Purifier, request: Request, folder: Path) -> dict[str, Any]:
        sanitizer = Sanitizer(
            defense,
            device=self.device,
            precision=self.precision,
            seed=self.seed,
            tracking_uri=self.tracking_uri,
            workdir=folder / "job",
            policy=self.policy,
            display=self.display,
        )
        given = {name: getattr(request, name) for name in ("data", "probe_data", "test_data", "triggers", "arch")}
        given |= {name: getattr(request, name) for name in ("normalization", "image_size", "allow_stubbed")}
        try:
            report = sanitizer.run(request.model, **given)
        except SanitizeError as error:  # the scan's verdict stands without it
            self.display.say(f"{defense.name} could not purify {request.model}: {error}")
            return {"model_uri": None, "verdict": "error", "sha256": None, "reasons": [str(error)]}
        uri = str(report.model_uri)
        return {
            "model_uri": uri,
            "verdict": str(report.verdict),
            "sha256": identity_of_model(self.store, uri, folder / "cleaned"),
            "reasons": report.reasons,
        }

    def _carry_out(
        self,
        reference: ModelReference,
        parts: dict[str, Any],
        key: str,
        record: Record,
        decided: Decided,
        started: float,
    ) -> Report:
        chosen, sha256 = self._opened(reference, parts["model"], record, decided.decision)
        facts = {
            records.DECISION_TAG: str(decided.decision),
            "sanitize.verdict": str(decided.report.verdict),
            "sanitize.scan_verdict": str(record.scan.verdict),
            "sanitize.subject": reference.pinned_uri,
            records.SUBJECT_TAG: parts["model"],
            "sanitize.policy": self.policy.reference,
            "sanitize.waived": "; ".join(map(str, decided.waivers)),
            records.OPENED_TAG: sha256 or "",
        }
        report = decided.report
        report.outputs |= {"gate": str(decided.decision), "waivers": [str(waiver) for waiver in decided.waivers]}
        run_id = record.run_id
        same = all(record.tags.get(name, "") == value for name, value in facts.items())
        if run_id is None or not same or records.latest(self.store, parts["model"]) != run_id:
            run_id = records.write(self.store, key, parts, record, report, facts)
        approved = self.promotion.carry_out(reference, chosen, sha256, facts, run_id)
        report.outputs |= {"gate_run_id": run_id, "approved_uri": approved, "cleaned": record.cleaned}
        report.timings["gate"] = round(time.perf_counter() - started, 3)
        return report

    def _opened(
        self, reference: ModelReference, sha256: str, record: Record, decision: Decision
    ) -> tuple[ModelReference | None, str | None]:
        """The version that is approved, and its digest; None for neither."""
        if decision is not Decision.CLEANED:
            return (reference, sha256) if decision.opens else (None, None)
        assert record.cleaned is not None  # decide() was told so
        uri = record.cleaned["model_uri"]
        if findings := verify(self.store, uri):
            raise TrackingError(f"{uri} is not what was released, so it is not approved: {findings[0].message}")
        return self.store.resolve(uri), record.cleaned["sha256"]
