"""Why `mlflow.models.evaluate` has no evaluator of ours (docs/pipelines.md): by then the model's code has run."""

from __future__ import annotations

import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.models.evaluation import ModelEvaluator
from mlflow.models.evaluation.evaluator_registry import _model_evaluation_registry as registry

LOADER = """
from pathlib import Path

class Model:
    def predict(self, rows):
        return rows

def _load_pyfunc(path):
    Path({canary!r}).touch()
    return Model()
"""
MLMODEL = "flavors:\n  python_function:\n    loader_module: hostile_loader\n    code: code\n"


class Cautious(ModelEvaluator):
    """Refuses every model, and notes whether its code had run when it was asked."""

    canary: Path | None = None
    too_late: bool | None = None

    @classmethod
    def can_evaluate(cls, **kwargs):
        cls.too_late = cls.canary.exists()
        return False

    def evaluate(self, **kwargs):
        raise AssertionError("it refused")


@pytest.fixture
def evaluator(store_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Registered as a plugin would be."""
    monkeypatch.setattr(Cautious, "canary", tmp_path / "canary")
    monkeypatch.setattr(Cautious, "too_late", None)
    monkeypatch.setitem(registry._registry, "cautious", Cautious)
    mlflow.set_tracking_uri(store_uri)
    yield Cautious
    mlflow.set_tracking_uri(None)


def test_the_code_of_a_model_has_run_before_an_evaluator_is_asked(evaluator, tmp_path, monkeypatch):
    (tmp_path / "model" / "code").mkdir(parents=True)
    (tmp_path / "model" / "MLmodel").write_text(MLMODEL)
    (tmp_path / "model" / "code" / "hostile_loader.py").write_text(LOADER.format(canary=str(evaluator.canary)))
    monkeypatch.setattr(sys, "path", list(sys.path))  # MLflow adds the model's code to it
    table = pd.DataFrame({"x": [1.0], "y": [1]})
    with pytest.raises(MlflowException, match="could not be evaluated by any"):
        mlflow.models.evaluate(
            str(tmp_path / "model"), table, targets="y", model_type="classifier", evaluators="cautious"
        )
    assert evaluator.too_late is True


def test_its_data_are_tables(evaluator):
    images, labels = np.zeros((2, 3, 8, 8)), np.zeros(2)
    with pytest.raises(MlflowException, match="2-dimensional"):
        mlflow.models.evaluate(
            lambda given: given, images, targets=labels, model_type="classifier", evaluators="cautious"
        )
