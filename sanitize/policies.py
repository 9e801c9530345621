"""Policies: the thresholds of a verdict, from a YAML file or made in Python."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sanitize.errors import ConfigError
from sanitize.method import explained
from sanitize.types import did_you_mean

_PURIFICATION = "encoder, classifier"
_ALL_RESULTS = "encoder, classifier, train"
_SCAN = "scan"


class Policy(BaseModel):
    """Thresholds of a verdict; one that is made without arguments is the default policy.

    `file` and `sha256` say which file it was read from, and are not keys of such a file.

    Raises:
        ConfigError: A key is unknown, of the wrong type, or out of range, or two of them contradict each other.

    Example:
        >>> Policy(maximum_attack_success_rate=0.05).maximum_attack_success_rate
        0.05
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    name: str = Field("default", min_length=1, max_length=100, description="how the policy is called in reports")
    file: str | None = Field(None, description="the file that it was read from, as it was named")
    sha256: str | None = Field(None, description="digest of that file")
    maximum_attack_success_rate: float = Field(
        0.10,
        ge=0,
        le=1,
        description="a known trigger that still works more often is a failure",
        json_schema_extra={"verdict": _ALL_RESULTS},
    )
    maximum_clean_accuracy_loss: float = Field(
        0.02,
        ge=0,
        le=1,
        description="clean accuracy that the purification may cost at most",
        json_schema_extra={"verdict": _PURIFICATION},
    )
    established_attack_success_rate: float = Field(
        0.5,
        ge=0,
        le=1,
        description="a trigger that works less often on the suspect shows nothing by being absent later",
        json_schema_extra={"verdict": _PURIFICATION},
    )
    false_alarm_rate: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="share of clean models that a scan may call suspicious",
        json_schema_extra={"verdict": _SCAN},
    )
    minimum_references: int = Field(
        5,
        ge=2,
        description="with fewer clean references the numbers of a scan settle nothing",
        json_schema_extra={"verdict": _SCAN},
    )
    minimum_removal_bound: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="a drill must show that at least this share of canaries is removed; none: no drill is required",
        json_schema_extra={"verdict": _PURIFICATION},
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(f"policy: {explained(error, policy_keys(), 'key')}") from error

    @model_validator(mode="after")
    def _a_trigger_that_works_is_above_what_is_allowed(self) -> Self:
        if self.established_attack_success_rate <= self.maximum_attack_success_rate:
            raise ValueError(
                "established_attack_success_rate must be above maximum_attack_success_rate, or a trigger that never "
                "worked would count as removed"
            )
        return self

    @property
    def reference(self) -> str:
        """Name and, for a policy from a file, digest: what a registered version is tagged with.

        Example:
            >>> Policy().reference
            'default'
        """
        return f"{self.name}@sha256:{self.sha256}" if self.sha256 else self.name

    @property
    def options(self) -> tuple[tuple[str, str], ...]:
        """What gives this policy on the command line."""
        return (("--policy", self.file),) if self.file else ()


def policy_keys() -> dict[str, Any]:
    """Keys that a policy file may hold, with what the class says about each."""
    return {name: info for name, info in Policy.model_fields.items() if name not in ("file", "sha256")}


def load_policy(path: str | Path) -> Policy:
    """Read a policy from a YAML file; what it leaves out has its default, `name` the file's stem.

    Raises:
        ConfigError: No such file, not YAML, an unknown key, or a value out of range.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read the policy {path} ({error.strerror}). Give a YAML file with --policy."
        ) from error
    try:
        values = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"policy {path}: not YAML ({error}).") from error
    if not isinstance(values, dict):
        raise ConfigError(f"policy {path}: write `key: value` lines. Keys: {', '.join(policy_keys())}.")
    if unknown := [str(key) for key in values if key not in policy_keys()]:
        hints = "; ".join(f"unknown key {key!r}. {did_you_mean(key, policy_keys())}" for key in unknown)
        raise ConfigError(f"policy {path}: {hints}")
    try:
        return Policy(**{"name": path.stem} | values, file=str(path), sha256=hashlib.sha256(content).hexdigest())
    except ConfigError as error:
        raise ConfigError(str(error).replace("policy:", f"policy {path}:", 1)) from error
