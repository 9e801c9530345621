"""The cleaned model as an MLflow model: ONNX for every loader, safetensors and JSON for us, and no pickle anywhere."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sanitize.errors import ExportError
from sanitize.tracking.digests import sha256_of
from sanitize.tracking.faults import quiet

WEIGHTS_FILE = "model.safetensors"
SPEC_FILE = "sanitize.json"
ONNX_FILE = "model.onnx"
FLAVOR = "sanitize"
FLAVORS = frozenset({"onnx", "python_function", FLAVOR})


def read_spec(package: Path) -> dict[str, Any]:
    """The JSON of a package, after checking that it goes with the weights beside it.

    Raises:
        ExportError: A file is missing, or the weights are not those that the JSON names.
    """
    try:
        spec: dict[str, Any] = json.loads((package / SPEC_FILE).read_text(encoding="utf-8"))
        found = sha256_of(package / WEIGHTS_FILE)
    except (OSError, ValueError) as error:
        raise ExportError(f"{package} is not a package of a cleaned model: {error}. Write it again.") from error
    if spec.get("sha256") != found:
        raise ExportError(f"{package / WEIGHTS_FILE} is not what {SPEC_FILE} beside it names. Write the package again.")
    return spec


def write_model_folder(folder: Path, *, package: Path, onnx: Path, run_id: str, model_id: str) -> None:
    """Write an MLflow model with the flavours ``onnx``, ``python_function`` and ``sanitize``.

    The signature is that of the graph. The ONNX file and the package keep their bytes.

    Args:
        folder: New folder.
        package: Folder with ``model.safetensors`` and ``sanitize.json``.
        onnx: Single ONNX file with one input.
        run_id: Run that made the model.
        model_id: Its logged model (``m-...``).

    Raises:
        ExportError: A file is missing, or the ONNX file cannot be read.
    """
    import mlflow.onnx
    import onnx as onnx_library
    from mlflow.models import Model

    spec = read_spec(package)
    try:
        graph = onnx_library.load(str(onnx))
    except Exception as error:  # protobuf, onnx and the file system each have their own
        raise ExportError(f"could not read {onnx}: {error}. Export it again.") from error
    model = Model(run_id=run_id, model_id=model_id, model_uuid=model_id)
    with quiet():
        mlflow.onnx.save_model(
            graph,
            str(folder),
            mlflow_model=model,
            signature=_signature(graph.graph),
            pip_requirements=_requirements(),
            onnx_execution_providers=_providers(),
            save_as_external_data=False,
        )
    shutil.copyfile(onnx, folder / ONNX_FILE)
    for name in (WEIGHTS_FILE, SPEC_FILE):
        shutil.copyfile(package / name, folder / name)
    model.add_flavor(FLAVOR, weights=WEIGHTS_FILE, spec=SPEC_FILE, format_version=spec.get("format_version", 1))
    model.model_size_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    model.save(str(folder / "MLmodel"))


def _signature(graph: Any) -> Any:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    def schema(values: Any) -> Schema:
        return Schema([TensorSpec(np.dtype("float32"), _shape(value), value.name) for value in values])

    return ModelSignature(inputs=schema(graph.input), outputs=schema(graph.output))


def _shape(value: Any) -> tuple[int, ...]:
    """Shape of a tensor in an ONNX graph; -1 where it is free."""
    return tuple(axis.dim_value or -1 for axis in value.type.tensor_type.shape.dim)


def _providers() -> list[str]:
    """What MLflow's loader asks onnxruntime for; CUDA only where there is one: loading it fails loudly."""
    import torch

    return ["CUDAExecutionProvider"] * torch.cuda.is_available() + ["CPUExecutionProvider"]


def _requirements() -> list[str]:
    """What serving needs: the onnxruntime that is installed here, with or without CUDA."""
    found = []
    for names in (("onnx",), ("onnxruntime-gpu", "onnxruntime"), ("numpy",)):
        for name in names:
            try:
                found.append(f"{name}=={version(name)}")
                break
            except PackageNotFoundError:
                continue
    return found
