"""What a decision changes in the registry: tags of the version, and the alias."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from typing import Any

from mlflow.exceptions import MlflowException

from sanitize.gate.decision import Decision
from sanitize.gate.records import DECISION_TAG, OPENED_TAG
from sanitize.tracking import ModelReference, Store
from sanitize.tracking.faults import is_absent, quiet, tracking_errors
from sanitize.tracking.intake import check_name

SOURCE_TAG = "sanitize.gate_source"
RUN_TAG = "sanitize.gate_run_id"
_TAG_LENGTH = 5000


class Promotion:
    """Writes decisions into the registry; doing it twice changes nothing.

    Args:
        store: MLflow.
        alias: The alias that says approved.
        into: Registered model that gets copies of what is approved, or None.
    """

    def __init__(self, store: Store, alias: str, into: str | None) -> None:
        if into is not None:
            check_name(into)
        self.store = store
        self.alias = alias
        self.into = into

    def carry_out(
        self,
        subject: ModelReference,
        chosen: ModelReference | None,
        sha256: str | None,
        facts: dict[str, str],
        run_id: str,
    ) -> str | None:
        """Tag the subject, and move the alias to what was chosen.

        Args:
            subject: The version that was examined.
            chosen: The version that is approved, or None; then the alias leaves the subject.
            sha256: Digest of `chosen`.
            facts: The tags.
            run_id: Run with the record.

        Returns:
            URI of the version that the alias points to now, or None.

        Raises:
            TrackingError: The registry refused.
        """
        tags = facts | {RUN_TAG: run_id}
        with tracking_errors(f"could not record the decision about {subject.pinned_uri}"), quiet():
            self._tag(*_version(subject), tags)
            if chosen is None or _version(chosen) != _version(subject):
                self._withdraw(subject)
            if chosen is None:
                return None
            name, number = self._target(chosen, sha256 or "")
            if (name, number) != _version(subject):
                self._tag(name, number, tags | {SOURCE_TAG: chosen.pinned_uri})
            if self._aliased(name) != number:
                self.store.client.set_registered_model_alias(name, self.alias, number)
        return f"models:/{name}/{number}"

    def refuse(self, subject: ModelReference, why: str) -> None:
        """A version that cannot be read safely: tagged as rejected, without the alias."""
        tags = {DECISION_TAG: str(Decision.REJECTED), "sanitize.gate_error": why, OPENED_TAG: ""}
        with tracking_errors(f"could not record the decision about {subject.pinned_uri}"), quiet():
            self._tag(*_version(subject), tags)
            self._withdraw(subject)

    def _target(self, chosen: ModelReference, sha256: str) -> tuple[str, str]:
        """Name and version that get the alias; the copy is made where there is none of these files yet."""
        if self.into is None or self.into == chosen.name:
            return _version(chosen)
        for copy in reversed(self._copies()):
            if copy.tags.get(SOURCE_TAG) == chosen.pinned_uri and copy.tags.get(OPENED_TAG) == sha256:
                return self.into, str(copy.version)
        with redirect_stderr(io.StringIO()):  # MLflow tells what it does
            made = self.store.client.copy_model_version(chosen.pinned_uri, self.into)
        return self.into, str(made.version)

    def _copies(self) -> list[Any]:
        return self.store.versions(self.into or "")

    def _withdraw(self, subject: ModelReference) -> None:
        """Take the alias from the subject, and from copies of it."""
        name, version = _version(subject)
        if self._aliased(name) == version:
            self.store.client.delete_registered_model_alias(name, self.alias)
        if self.into is None:
            return
        number = self._aliased(self.into)
        for copy in self._copies():
            if str(copy.version) == number and copy.tags.get(SOURCE_TAG) == subject.pinned_uri:
                self.store.client.delete_registered_model_alias(self.into, self.alias)

    def _aliased(self, name: str) -> str | None:
        try:
            found = self.store.client.get_registered_model(name).aliases.get(self.alias)
        except MlflowException as error:
            if is_absent(error):
                return None
            raise
        return None if found is None else str(found)

    def _tag(self, name: str, version: str, tags: dict[str, str]) -> None:
        there = self.store.client.get_model_version(name, version).tags
        for key, value in tags.items():
            value = value[:_TAG_LENGTH] or "-"
            if there.get(key) != value:
                self.store.client.set_model_version_tag(name, version, key, value)


def _version(reference: ModelReference) -> tuple[str, str]:
    assert reference.name and reference.version  # the gate takes nothing else
    return reference.name, reference.version
