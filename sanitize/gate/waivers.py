"""Waivers: a person takes the responsibility for one model, for named findings, for some time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sanitize.errors import ConfigError

INCONCLUSIVE = "inconclusive"
"""In place of a rule: an inconclusive verdict is accepted."""


class Waiver(BaseModel):
    """What somebody answers for.

    Args:
        sha256: Digest of the model's files; no other model is waived.
        rules: Rules of the findings that are accepted, or ``inconclusive``.
        owner: Who answers for it.
        reason: Why.
        expires: Last day on which it counts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    rules: tuple[str, ...] = Field(min_length=1)
    owner: str = Field(min_length=1, max_length=200)
    reason: str = Field(min_length=1, max_length=1000)
    expires: date

    @field_validator("owner", "reason")
    @classmethod
    def _says_something(cls, text: str) -> str:
        if not text.strip() or not text.isprintable():
            raise ValueError("must be one line of text")
        return text

    def __str__(self) -> str:
        return f"{', '.join(self.rules)} waived by {self.owner} until {self.expires}: {self.reason}"


def load_waivers(path: str | Path) -> tuple[Waiver, ...]:
    """Read a YAML file with a list of waivers, or with a list under the key ``waivers``.

    Raises:
        ConfigError: No such file, not YAML, or a waiver without one of its entries.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the waivers {path} ({error.strerror}).") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"waivers {path}: not YAML ({error}).") from error
    listed = values.get("waivers") if isinstance(values, dict) and set(values) == {"waivers"} else values
    if listed is None:
        return ()
    if not isinstance(listed, list):
        raise ConfigError(f"waivers {path}: write a list; each item has sha256, rules, owner, reason and expires.")
    waivers = []
    for number, item in enumerate(listed, 1):
        try:
            waivers.append(Waiver.model_validate(item))
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'item'}: {one['msg']}" for one in error.errors())
            raise ConfigError(f"waivers {path}, number {number}: {problems}.") from error
    return tuple(waivers)


def beside(policy: Path) -> Path | None:
    """The file with the waivers that lies next to a policy, or None.

    Example:
        >>> beside(Path("nowhere/strict.yaml")) is None
        True
    """
    file = policy.with_name(f"{policy.stem}.waivers.yaml")
    return file if file.is_file() else None


def about(waivers: Sequence[Waiver], sha256: str, today: date) -> tuple[list[Waiver], list[Waiver]]:
    """Waivers of one model: those that count today, and those that have expired."""
    mine = [waiver for waiver in waivers if waiver.sha256 == sha256]
    return [w for w in mine if w.expires >= today], [w for w in mine if w.expires < today]
