"""Months later: is a released version still what was released? Files are hashed and read as data, never executed."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import yaml

from sanitize.errors import TrackingError
from sanitize.tracking.digests import sha256_of
from sanitize.tracking.faults import tracking_errors
from sanitize.tracking.model_folder import FLAVOR, FLAVORS, ONNX_FILE, SPEC_FILE, WEIGHTS_FILE
from sanitize.tracking.release import ALIAS
from sanitize.tracking.staging import REPORT_FILE
from sanitize.tracking.store import Store
from sanitize.types import Finding, Severity, Verdict

_RESTORE = "Do not deploy it; restore the files from a backup, or run `sanitize encoder` on {parent} again."
_PINNED = re.compile(r"models:/[^/@]+/\d+|models:/m-[0-9a-f]+|runs:/.+")
_ENTRIES = {
    "python_function": {"loader_module": "mlflow.onnx", "data": ONNX_FILE},
    "onnx": {"data": ONNX_FILE},
    FLAVOR: {"weights": WEIGHTS_FILE, "spec": SPEC_FILE},
}


def verify(store: Store, uri: str) -> list[Finding]:
    """Compare a released version with what was recorded when it was released.

    Args:
        store: Where it is registered.
        uri: ``models:/NAME/VERSION`` or with an alias.

    Returns:
        One finding of severity `error` for each mismatch; empty when all is as recorded.

    Raises:
        TrackingError: There is no such version, or it was not released by `sanitize`.
    """
    reference = store.resolve(uri)
    if reference.name is None or reference.version is None:
        raise TrackingError(f"{uri} is not a registered version; `verify` needs models:/NAME/VERSION.")
    with tracking_errors(f"could not verify {uri}"):
        version = store.client.get_model_version(reference.name, reference.version)
        aliases = store.client.get_registered_model(reference.name).aliases
    tags: dict[str, str] = dict(version.tags)
    run_id = tags.get("sanitize.run_id")
    if not run_id or "sanitize.sha256" not in tags:
        raise TrackingError(
            f"{uri} was not released by sanitize: it has no recorded digests. Give a version that it registered."
        )
    check = _Check(reference.pinned_uri, tags, copied_from=version.source)
    with tempfile.TemporaryDirectory() as temporary:
        _check_model(check, store, reference, Path(temporary) / "model")
        _check_run(check, store, run_id, Path(temporary) / "run")
    if str(aliases.get(ALIAS)) == reference.version and tags.get("sanitize.verdict") != Verdict.PASS:
        check.add(
            "verify-alias",
            f"the alias {ALIAS} points here, but the verdict is not pass",
            verdict=tags.get("sanitize.verdict"),
        )
    return check.findings


class _Check:
    """Collects what differs."""

    def __init__(self, uri: str, tags: dict[str, str], copied_from: str | None) -> None:
        self.uri = uri
        self.tags = tags
        self.names = {uri, copied_from}  # MLflow's copy of a version names the original as its source
        self.findings: list[Finding] = []

    def add(self, rule: str, what: str, **evidence: Any) -> None:
        advice = _RESTORE.format(parent=self.tags.get("sanitize.parent", "its parent"))
        message = f"{self.uri}: {what}. {advice}"
        self.findings.append(Finding(rule=rule, severity=Severity.ERROR, message=message, evidence=evidence))

    def digest(self, rule: str, path: Path, recorded: str | None, what: str) -> None:
        found = sha256_of(path) if path.exists() else None
        if found is None or found != recorded:
            problem = "is missing" if found is None else "is not what was recorded"
            self.add(rule, f"{what} {problem}", recorded=recorded, found=found)


def _check_model(check: _Check, store: Store, reference: Any, folder: Path) -> None:
    try:
        store.download(reference, folder)
    except TrackingError as error:
        check.add("verify-model", f"its files cannot be read ({error})")
        return
    check.digest("verify-weights", folder / WEIGHTS_FILE, check.tags.get("sanitize.sha256"), WEIGHTS_FILE)
    check.digest("verify-onnx", folder / ONNX_FILE, check.tags.get("sanitize.onnx_sha256"), ONNX_FILE)
    check.digest("verify-model", folder, check.tags.get("sanitize.model_sha256"), "the folder of the model")
    try:
        recorded = json.loads((folder / SPEC_FILE).read_text(encoding="utf-8")).get("sha256")
    except (OSError, ValueError, AttributeError):
        check.add("verify-spec", f"{SPEC_FILE} is missing or cannot be read")
    else:
        check.digest("verify-spec", folder / WEIGHTS_FILE, recorded, f"{WEIGHTS_FILE}, by the digest in {SPEC_FILE},")
    _check_flavors(check, folder / "MLmodel")


def _check_flavors(check: _Check, file: Path) -> None:
    try:
        flavors = yaml.safe_load(file.read_text(encoding="utf-8"))["flavors"]
        found = {name: dict(entries) for name, entries in flavors.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        check.add("verify-flavors", "MLmodel is missing or cannot be read")
        return
    if found.keys() != FLAVORS:
        check.add(
            "verify-flavors", "MLmodel names other loaders", recorded=sorted(FLAVORS), found=sorted(map(str, found))
        )
    for name, entries in _ENTRIES.items():
        for key, value in entries.items():
            if name in found and found[name].get(key) != value:
                check.add(
                    "verify-flavors",
                    f"{key} of {name} in MLmodel was changed",
                    recorded=value,
                    found=str(found[name].get(key)),
                )
    code = [name for name, entries in found.items() if entries.get("code")]
    if code:
        check.add("verify-flavors", "MLmodel brings code of its own", found=code)


def _check_run(check: _Check, store: Store, run_id: str, folder: Path) -> None:
    tags = check.tags
    files = {
        REPORT_FILE: "sanitize.report_sha256",
        tags.get("sanitize.onnx_file", "encoder.onnx"): "sanitize.onnx_sha256",
    }
    for file, tag in files.items():
        rule = "verify-report" if file == REPORT_FILE else "verify-onnx"
        try:
            store.fetch_run_file(run_id, file, folder)
        except TrackingError:
            check.add(rule, f"{file} of run {run_id} is missing", recorded=tags.get(tag))
            continue
        check.digest(rule, folder / Path(file).name, tags.get(tag), f"{file} of run {run_id}")
    _check_words(check, folder / REPORT_FILE)


def _check_words(check: _Check, report_file: Path) -> None:
    """The tags a person reads against the report."""
    try:
        report = json.loads(report_file.read_text(encoding="utf-8"))
        words = {
            "sanitize.verdict": report["verdict"],
            "sanitize.method": report["defense"].get("name", ""),
            "sanitize.parent": report["subject"].get("uri"),
        }
        uri = report["outputs"].get("model_uri")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # a missing or changed report is a finding already
    if not _PINNED.fullmatch(str(words["sanitize.parent"])):
        del words["sanitize.parent"]  # an alias: it may point elsewhere today, the tag has the version it stood for
    for tag, word in words.items():
        if check.tags.get(tag) != word:
            check.add(
                "verify-tags", f"the tag {tag} is not what the report says", recorded=word, found=check.tags.get(tag)
            )
    if uri not in check.names:
        check.add("verify-report", "its report is about another version", recorded=check.uri, found=uri)
