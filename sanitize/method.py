"""What defences, attacks and trainers have in common: a name, a paper, and validated parameters."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from sanitize.errors import ConfigError
from sanitize.types import did_you_mean


@dataclass(frozen=True)
class Paper:
    """Where a method comes from."""

    title: str
    reference: str
    url: str


class Method(BaseModel, ABC):
    """Base of all methods.

    Subclasses declare their hyperparameters as pydantic fields with a description, a range, and, in
    ``json_schema_extra={"paper": ...}``, the paper's value where it differs from the default.

    Raises:
        ConfigError: A parameter is unknown, of the wrong type, or out of range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    name: ClassVar[str]
    paper: ClassVar[Paper]
    summary: ClassVar[str]

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(f"{type(self).name}: {explained(error, type(self).model_fields, 'parameter')}") from error

    def parameters(self) -> dict[str, dict[str, Any]]:
        """Each parameter with its value, the paper's value, and what it means: for the report."""
        listed = {}
        for name, info in type(self).model_fields.items():
            extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
            listed[name] = {
                "value": getattr(self, name),
                "paper": extra.get("paper", info.default),
                "description": info.description,
            }
        return listed


def explained(error: ValidationError, known: Iterable[str], word: str) -> str:
    """What is wrong with the values that pydantic refused, in one line.

    Args:
        error: From pydantic.
        known: Names that there are.
        word: What such a name is called: parameter, key.
    """
    lines = []
    for problem in error.errors():
        key = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown {word} {key!r}. {did_you_mean(key, known)}")
        elif key:
            lines.append(f"{key}={problem['input']!r}: {problem['msg']}")
        else:
            lines.append(problem["msg"])
    return "; ".join(lines)
