"""A registry with a candidate, and clean references."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient

from sanitize.detection.collapse import FeatureCollapse
from sanitize.gate import Gate
from sanitize.inputs import Request
from sanitize.intake import Knowledge, take_in
from sanitize.policies import Policy
from sanitize.types import Report

KNOWN = Knowledge(data="digits#0:64", arch="small-cnn", normalization="half", image_size=32)
LENIENT = Policy(name="lenient", false_alarm_rate=1e-6, minimum_references=2)
STRICT = Policy(name="strict", false_alarm_rate=0.999999, minimum_references=2)
"""A policy by which nothing passes: a clean model is as extreme as this with any chance below one half."""


@dataclass(frozen=True)
class Registry:
    """models:/suspect/1 (alias candidate) and models:/clean/1, /2."""

    uri: str
    folder: Path

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)

    def gate(self, policy: Policy = LENIENT, **options: object) -> Gate:
        settings = {"references": ["models:/clean/1", "models:/clean/2"], "detector": FeatureCollapse(steps=1)}
        return Gate(policy=policy, tracking_uri=self.uri, device="cpu", **{**settings, **options})

    def run(self, policy: Policy = LENIENT, model: str = "models:/suspect@candidate", **options: object) -> Report:
        return self.gate(policy, **options).run(Request(model=model))

    def tags(self, name: str = "suspect", version: str = "1") -> dict[str, str]:
        return dict(self.client.get_model_version(name, version).tags)

    def aliases(self, name: str = "suspect") -> dict[str, str]:
        return {alias: str(number) for alias, number in self.client.get_registered_model(name).aliases.items()}


@pytest.fixture
def registry(store_uri, encoders, reference_files, tmp_path) -> Registry:
    take_in(encoders.clean_file, "suspect", KNOWN, tracking_uri=store_uri)
    for file in reference_files[:2]:
        take_in(file, "clean", KNOWN, tracking_uri=store_uri)
    registry = Registry(store_uri, tmp_path)
    registry.client.set_registered_model_alias("suspect", "candidate", "1")
    return registry
