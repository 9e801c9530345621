"""The words that every room shares: verdict, finding, model specification, report. No torch, no MLflow in here."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

from sanitize.errors import ConfigError

ModelKind = Literal["encoder", "classifier"]
Metrics = dict[str, float | None]
"""Metric name -> value; `None` where it could not be measured (the reason is in `Report.unmeasured`)."""

SCHEMA_VERSION = 1
RESIZE_RULE = "shorter side, then centre crop; bilinear with antialias"


class Verdict(StrEnum):
    """What a run concludes; always accompanied by reasons."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"

    @property
    def exit_code(self) -> int:
        """Exit code of the command line: 0 pass, 1 fail, 3 inconclusive (2 is for errors)."""
        return {Verdict.PASS: 0, Verdict.FAIL: 1, Verdict.INCONCLUSIVE: 3}[self]


class Severity(StrEnum):
    """How much a finding weighs; the names are SARIF's levels."""

    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One observation about the subject, with what it rests on.

    Args:
        rule: Stable identifier in kebab case, for example ``artifact-unknown-global``.
        severity: Weight of the observation.
        message: One sentence for a person.
        evidence: JSON-serialisable facts behind it.
    """

    rule: str
    severity: Severity
    message: str
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Normalization:
    """Per-channel mean and standard deviation, for RGB in [0, 1]."""

    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def named(cls, name: str) -> Normalization:
        """Look up a built-in normalization.

        Raises:
            ConfigError: The name is unknown; the message lists the names and the closest match.

        Example:
            >>> Normalization.named("imagenet").mean
            (0.485, 0.456, 0.406)
        """
        if name not in NORMALIZATIONS:
            raise ConfigError(f"unknown normalization {name!r}. {did_you_mean(name, NORMALIZATIONS)}")
        return NORMALIZATIONS[name]


NORMALIZATIONS: dict[str, Normalization] = {
    item.name: item
    for item in (
        Normalization("none", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        Normalization("half", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        Normalization("cifar10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        Normalization("cifar100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        Normalization("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    )
}


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What is needed to rebuild a network and feed it; stored as JSON beside the weights.

    Args:
        kind: ``encoder`` gives features (N, D), ``classifier`` gives logits (N, C).
        architecture: Built-in name, torchvision name, or the defender's ``file.py:function``.
        normalization: Applied inside the network; its input is RGB in [0, 1].
        image_size: Height and width in pixels.
        output_size: D of an encoder, C of a classifier.
    """

    kind: ModelKind
    architecture: str
    normalization: Normalization
    image_size: int
    output_size: int

    def to_dict(self) -> dict[str, Any]:
        """JSON form, with the resize rule spelled out."""
        return asdict(self) | {"resize": RESIZE_RULE}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelSpec:
        """Inverse of `to_dict`.

        Raises:
            ConfigError: A key is missing, unknown, or has the wrong form.
        """
        try:
            fields = dict(values)
            fields.pop("resize", None)
            normalization = fields.pop("normalization")
            normalization = Normalization(
                str(normalization["name"]),
                tuple(map(float, normalization["mean"])),  # type: ignore[arg-type]
                tuple(map(float, normalization["std"])),  # type: ignore[arg-type]
            )
            return cls(normalization=normalization, **fields)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"not a model specification: {error!r}") from error


@dataclass(kw_only=True)
class Report:
    """The result of one sanitization; table, JSON, SARIF, JUnit, Markdown and HTML are views of it.

    Keys and meaning are documented in docs/report.md; fractions are in [0, 1], times in seconds.
    """

    tool: dict[str, Any]
    subject: dict[str, Any]
    defense: dict[str, Any]
    data: dict[str, Any]
    verdict: Verdict
    reasons: list[str]
    findings: list[Finding] = field(default_factory=list)
    metrics: dict[str, Metrics] = field(default_factory=lambda: {"before": {}, "after": {}})
    unmeasured: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    throughput: dict[str, float] = field(default_factory=dict)
    seed: int = 0
    environment: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
    figures: tuple[Any, ...] = field(default=(), repr=False, compare=False)
    """Pictures for the HTML view; not part of the JSON."""

    @property
    def model_uri(self) -> str | None:
        """URI of the registered result, for example ``models:/suspect/2``."""
        return self.outputs.get("model_uri")

    @property
    def onnx_uri(self) -> str | None:
        """URI of the ONNX file, for example ``runs:/<id>/encoder.onnx``."""
        return self.outputs.get("onnx_uri")

    def to_dict(self) -> dict[str, Any]:
        """JSON form, `schema_version` first."""
        values = asdict(replace(self, figures=()))
        del values["figures"]
        return {"schema_version": values.pop("schema_version"), **values}

    def to_json(self) -> str:
        """The report as JSON text; NaN and infinity are refused, since JSON has neither."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Report:
        """Inverse of `to_dict`."""
        fields = dict(values)
        fields["verdict"] = Verdict(fields["verdict"])
        fields["findings"] = [
            Finding(**{**finding, "severity": Severity(finding["severity"])}) for finding in fields["findings"]
        ]
        return cls(**fields)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint for a word that is not known.

    Example:
        >>> did_you_mean("bmaui", ["bmaiu", "uau"])
        'Did you mean bmaiu? Known: bmaiu, uau.'
    """
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    return f"{hint}Known: {', '.join(names)}."
