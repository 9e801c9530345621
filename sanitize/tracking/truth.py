"""What only the attacker and the evaluation know of a planted backdoor, in an experiment of its own.

A record is the folder ``truth`` of a run in `EXPERIMENT`. A tag of that run names the registered suspect; nothing in
the suspect, its version, its tags or its intake run leads here. Defences do not import this module.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sanitize.data import Trigger
from sanitize.errors import TrackingError
from sanitize.tracking.digests import files_in, sha256_of
from sanitize.tracking.faults import tracking_errors
from sanitize.tracking.runs import RunRecorder
from sanitize.tracking.store import Store, literal

EXPERIMENT = "sanitize-red-team"
PLANTED_TAG = "sanitize.planted"
DIGEST_TAG = "sanitize.truth_sha256"
_FOLDER = "truth"
_RECORD = "truth.json"
_ARRAYS = "truth.npz"


@dataclass(frozen=True, kw_only=True)
class TruthRecord:
    """The truth about one suspect.

    Args:
        facts: Attack, parameters, seed, data, clean parent, realised count and share: what truth.json holds.
        poisoned: (N,) bool, which training images carry the trigger; None where no training data was poisoned.
        labels: (N,) int64, their true classes; None likewise.
        triggers: What the attacker shows at test time.
    """

    facts: dict[str, Any]
    poisoned: Tensor | None
    labels: Tensor | None
    triggers: tuple[Trigger, ...]


def write_truth(
    recorder: RunRecorder,
    facts: Mapping[str, Any],
    *,
    triggers: Sequence[Path],
    poisoned: Tensor | None = None,
    labels: Tensor | None = None,
) -> None:
    """Store the truth in the run of the attack, before anything is registered.

    It is found by `read_truth` once the tag `PLANTED_TAG` of the run names the registered suspect.

    Args:
        recorder: An open run in `EXPERIMENT`.
        facts: JSON-serialisable; ``facts["suspect"]["sha256"]`` is the digest of what is going to be registered.
        triggers: Folders with a ``trigger.yaml`` each.
        poisoned: See `TruthRecord`.
        labels: See `TruthRecord`.

    Raises:
        TrackingError: The store refused.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if poisoned is not None and labels is not None:
            np.savez_compressed(
                folder / _ARRAYS, poisoned=poisoned.cpu().numpy().astype(bool), labels=labels.cpu().numpy()
            )
        files = {file: sha256_of(folder / file) for file in files_in(folder)}
        for number, trigger in enumerate(triggers):
            place = f"triggers/{number}"
            files |= {f"{place}/{file}": sha256_of(trigger / file) for file in files_in(trigger)}
            recorder.file(trigger, f"{_FOLDER}/{place}")
        text = json.dumps({"schema_version": 1, **facts, "files": files}, indent=2, ensure_ascii=False)
        (folder / _RECORD).write_text(text, encoding="utf-8")
        recorder.file(folder, _FOLDER)
        recorder.tags({DIGEST_TAG: sha256_of(folder / _RECORD)})


def read_truth(store: Store, subject: str | Path) -> TruthRecord:
    """The truth about what `sanitize attack` planted. For evaluation and benchmarks only.

    Args:
        store: Where the record is.
        subject: ``models:/NAME/VERSION`` or with an alias; or the path of a poisoned data set that was written.

    Raises:
        TrackingError: There is no such version, it was not planted here, or the record is not that of these files.
    """
    with tracking_errors(f"could not read the truth about {subject}"), tempfile.TemporaryDirectory() as temporary:
        planted, digest = _identity(store, subject)
        run = _run_of(store, planted)
        folder = Path(temporary)
        record = store.fetch_run_file(run.info.run_id, f"{_FOLDER}/{_RECORD}", folder)
        if sha256_of(record) != run.data.tags.get(DIGEST_TAG):
            raise _refusal(planted, f"{_RECORD} was changed after it was written")
        facts: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        if facts["suspect"]["sha256"] != digest:
            raise _refusal(planted, "it is about other files than those that are registered")
        for file, expected in facts["files"].items():
            place = folder / PurePosixPath(file).parent
            if sha256_of(store.fetch_run_file(run.info.run_id, f"{_FOLDER}/{file}", place)) != expected:
                raise _refusal(planted, f"{file} was changed after it was written")
        poisoned = labels = None
        if (folder / _ARRAYS).is_file():
            with np.load(folder / _ARRAYS, allow_pickle=False) as arrays:
                poisoned, labels = torch.from_numpy(arrays["poisoned"]), torch.from_numpy(arrays["labels"])
        specs = sorted(folder.glob("triggers/*/trigger.yaml"), key=lambda path: int(path.parent.name))
        triggers = tuple(Trigger.from_yaml(spec) for spec in specs)
    return TruthRecord(facts=facts, poisoned=poisoned, labels=labels, triggers=triggers)


def _identity(store: Store, subject: str | Path) -> tuple[str, str | None]:
    """What the tag of the record says, and the digest of the files."""
    if isinstance(subject, Path):
        digest = sha256_of(subject)
        return f"sha256:{digest}", digest
    reference = store.resolve(subject)
    if reference.name is None or reference.version is None:
        raise TrackingError(f"{subject} is not a registered version; give models:/NAME/VERSION.")
    version = store.client.get_model_version(reference.name, reference.version)
    return reference.pinned_uri, version.tags.get("sanitize.sha256")


def _run_of(store: Store, planted: str) -> Any:
    experiment = store.client.get_experiment_by_name(EXPERIMENT)
    found = (
        store.client.search_runs(
            [experiment.experiment_id],
            f"tags.`{PLANTED_TAG}` = {literal(planted)} and attributes.status = 'FINISHED'",
            max_results=1,
            order_by=["attributes.start_time DESC"],
        )
        if experiment is not None
        else []
    )
    if not found:
        raise TrackingError(f"nothing is known about {planted}: `sanitize attack` did not register it here.")
    return found[0]


def _refusal(subject: str, why: str) -> TrackingError:
    return TrackingError(f"the truth about {subject} cannot be used: {why}. Plant it again with `sanitize attack`.")
