"""A small cleaned model, as the export room leaves it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper
from safetensors.torch import save

from sanitize.tracking import Documents
from sanitize.types import ModelSpec, Normalization, Report, Verdict


@dataclass(frozen=True)
class Cleaned:
    package: Path
    onnx: Path


def make_cleaned(folder: Path) -> Cleaned:
    package = folder / "package"
    package.mkdir(parents=True)
    weights = save({"weight": torch.arange(6.0).reshape(2, 3)})
    (package / "model.safetensors").write_bytes(weights)
    normalization = Normalization.named("none")
    spec = ModelSpec(kind="encoder", architecture="small-cnn", normalization=normalization, image_size=8, output_size=3)
    header = {"format_version": 1, "sha256": hashlib.sha256(weights).hexdigest()}
    (package / "sanitize.json").write_text(json.dumps(header | spec.to_dict()))
    onnx.save(mean_colours(), folder / "encoder.onnx")
    return Cleaned(package, folder / "encoder.onnx")


def mean_colours() -> onnx.ModelProto:
    """images (batch, 3, 8, 8) -> features (batch, 3): the mean of each channel."""
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 8, 8])
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 3])
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
    ]
    graph = helper.make_graph(nodes, "encoder", [images], [features])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def describe(uri: str, verdict: Verdict = Verdict.PASS, subject: str = "models:/suspect/1") -> Documents:
    report = Report(
        tool={"name": "sanitize"},
        subject={"uri": subject},
        defense={"name": "bmaiu"},
        data={},
        verdict=verdict,
        reasons=["because"],
        metrics={"before": {"clean_accuracy": 0.98}, "after": {"clean_accuracy": 0.97, "attack_success_rate": None}},
        outputs={"model_uri": uri},
    )
    return Documents(
        report_json=report.to_json(), report_html=f"<p>{uri}</p>", description=f"**{verdict}** {uri}", verdict=verdict
    )
