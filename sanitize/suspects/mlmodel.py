"""Reads the text files of an MLflow model folder as data, and says what MLflow would have run on loading it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from sanitize.errors import ArtifactError, UnsafeArtifactError
from sanitize.types import Finding, Severity

MAX_TEXT_BYTES = 256 << 10
MAX_ALIASES = 16
MAX_DEPTH = 40
MLFLOW_LOADERS = re.compile(
    r"mlflow\.(pytorch|onnx|sklearn|pyfunc\.model|pyfunc\.loaders\.\w+|keras|tensorflow|transformers)"
)
PICKLE_MODULES = frozenset({"mlflow.pytorch.pickle_module", "pickle", "cloudpickle", "torch.serialization"})
_UNUSUAL_REQUIREMENT = re.compile(r"(--|-[ief]\b|.*(\w+\+)?\w+://|.*@\s*file:|\.{0,2}/)")


def read_mlmodel(path: Path) -> dict[str, Any]:
    """The content of an `MLmodel` file, as plain data.

    Raises:
        ArtifactError: It is no YAML mapping.
        UnsafeArtifactError: It is oversized, or built of aliases (an alias bomb).
    """
    text = _text(path)
    try:
        _check_structure(path, text)
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ArtifactError(f"{path} is not readable as YAML data ({reason}).") from error
    if not isinstance(values, dict):
        raise ArtifactError(f"{path} holds no YAML mapping, so this is no MLflow model.")
    return values


def _check_structure(path: Path, text: str) -> None:
    # Event by event, so that it stops before a bomb costs anything: nesting takes the parser quadratic time.
    aliases = depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        aliases += isinstance(event, yaml.AliasEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if aliases > MAX_ALIASES:
            raise UnsafeArtifactError(
                f"{path} refers to parts of itself again and again: an alias bomb. It is not read."
            )
        if depth > MAX_DEPTH:
            raise UnsafeArtifactError(f"{path} is nested deeper than {MAX_DEPTH} levels. It is not read.")


def inspect_folder(root: Path, files: list[Path]) -> list[Finding]:
    """Findings about what loading the folder with MLflow would import or install.

    Findings of severity `error` mean that code named or brought by the artifact would run.

    Args:
        root: The quarantined folder.
        files: Its files.
    """
    findings: list[Finding] = []
    for file in files:
        where = file.relative_to(root).as_posix()
        if file.name == "MLmodel":
            findings += _about_mlmodel(read_mlmodel(file), where)
        elif file.name == "pickle_module_info.txt":
            findings += _about_pickle_module(_text(file).strip(), where)
        elif file.name in ("requirements.txt", "conda.yaml", "python_env.yaml"):
            findings += _about_requirements(_text(file), where)
    code = [file.relative_to(root).as_posix() for file in files if file.suffix in {".py", ".so", ".pyd", ".dll"}]
    if code:
        message = f"It brings {len(code)} code files ({', '.join(code[:3])}), which MLflow puts on the import path."
        findings.append(_finding("artifact-code", Severity.WARNING, message, files=code[:50]))
    return findings


def _about_mlmodel(values: dict[str, Any], where: str) -> Iterator[Finding]:
    flavors = values.get("flavors")
    for flavor, settings in flavors.items() if isinstance(flavors, dict) else ():
        if not isinstance(settings, dict):
            continue
        loader = settings.get("loader_module")
        if loader is not None and not MLFLOW_LOADERS.fullmatch(str(loader)):
            message = f"{where} names loader_module {str(loader)[:100]!r}; MLflow imports it on loading."
            yield _finding("artifact-loader-module", Severity.ERROR, message, module=str(loader)[:200], file=where)
        pickler = settings.get("pickle_module_name")
        if pickler is not None and str(pickler) not in PICKLE_MODULES:
            message = f"{where} names pickle_module_name {str(pickler)[:100]!r}; MLflow may import it on loading."
            yield _finding("artifact-pickle-module", Severity.ERROR, message, module=str(pickler)[:200], file=where)
        if settings.get("code"):
            message = f"{where} has flavor {str(flavor)[:50]} put {str(settings['code'])[:100]!r} on the import path."
            yield _finding("artifact-code", Severity.WARNING, message, file=where)


def _about_pickle_module(module: str, where: str) -> Iterator[Finding]:
    if module not in PICKLE_MODULES:
        message = f"{where} names {module[:100]!r}; MLflow imports that module on loading."
        yield _finding("artifact-pickle-module", Severity.ERROR, message, module=module[:200], file=where)


def _about_requirements(text: str, where: str) -> Iterator[Finding]:
    lines = [line.strip(" -\t\"'") if line.lstrip().startswith("- ") else line.strip() for line in text.splitlines()]
    unusual = [line[:200] for line in lines if _UNUSUAL_REQUIREMENT.match(line)]
    if unusual:
        message = f"{where} installs from outside the package index: {', '.join(unusual[:3])[:200]}."
        yield _finding("artifact-requirements", Severity.WARNING, message, file=where, lines=unusual[:20])


def _finding(rule: str, severity: Severity, message: str, **evidence: Any) -> Finding:
    return Finding(rule=rule, severity=severity, message=message, evidence=evidence)


def _text(path: Path) -> str:
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise UnsafeArtifactError(
            f"{path} has {path.stat().st_size:,} bytes, absurd for a small text file. It is not read."
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not readable as text ({error}).") from error
