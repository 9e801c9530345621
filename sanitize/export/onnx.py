"""The cleaned model for serving: one ONNX file, normalization inside, checked against PyTorch before it counts."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor

from sanitize.errors import ExportError
from sanitize.export.atomic import replacing
from sanitize.suspects.networks import Network
from sanitize.types import ModelSpec

INPUT = "images"
OUTPUTS = {"encoder": "features", "classifier": "logits"}
OPSET = 18
TOLERANCE = 1e-4
_TRACED_BATCH = 2  # with a batch of 1 the exporter would fix the batch size
_CHECKED_BATCHES = (1, 5)
_SIZE_LIMIT = 2**31 - 1  # bytes; what one protobuf message can hold

_log = logging.getLogger(__name__)


def export_onnx(network: Network, path: Path, *, metadata: Mapping[str, str]) -> float:
    """Write `network` as one ONNX file and check it against PyTorch.

    The graph takes ``images``, float32 (batch, 3, H, W), RGB in [0, 1], with any batch size, and gives ``features``
    (batch, D) or ``logits`` (batch, C). Normalization is part of the graph. The same weights, torch version and
    metadata give the same bytes: the exporter's notes on nodes, which hold paths of this machine, are left out.

    Args:
        network: Encoder or classifier; it is copied, so its mode and device stay as they are.
        path: The file; replaced when it exists.
        metadata: Written to ``metadata_props`` beside what prepares the input (``sanitize.image_size``,
            ``sanitize.resize``, ``sanitize.normalization``, ...). The caller names source URI, digest and run.

    Returns:
        Largest absolute difference between onnxruntime and PyTorch over batches of 1 and 5 and every provider in use.

    Raises:
        ExportError: The network cannot be exported with a free batch size, does not fit into one file (2 GB), differs
            from PyTorch by more than ``1e-4 * max(1, largest absolute output)``, or the file system refuses. No file is
            left.
    """
    exported = copy.deepcopy(network).cpu().float().eval()
    with torch.no_grad():
        model = _trace(exported)
    _describe(model, exported.spec, metadata)
    size = model.ByteSize()
    if size > _SIZE_LIMIT:
        raise ExportError(
            f"{exported.spec.architecture} needs {size / 1e9:.1f} GB as ONNX, and one ONNX file holds at most 2 GB. "
            "The safetensors package has no such limit."
        )
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"the exporter made an invalid ONNX graph of {exported.spec.architecture}: {error}"
        ) from error
    content = model.SerializeToString(deterministic=True)
    with replacing(path) as draft:
        draft.write_bytes(content)
        difference = max(_difference(exported, draft, provider) for provider in _providers())
    return difference


def _trace(network: Network) -> Any:
    """The network as an ONNX model; a `ModelProto`."""
    spec = network.spec
    images = torch.full((_TRACED_BATCH, 3, spec.image_size, spec.image_size), 0.5)
    with _quiet() as chatter:
        try:
            program = torch.onnx.export(
                network,
                (images,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUTS[spec.kind]],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
            if program is None:
                raise RuntimeError("the exporter gave nothing")
            return program.model_proto
        except Exception as error:  # the exporter lets through whatever a foreign architecture raises
            _log.debug("the exporter said:\n%s", chatter.getvalue())
            cause = error.__cause__ or error
            said = " ".join(str(cause).split())[:400]
            raise ExportError(
                f"{spec.architecture} at {spec.image_size} px could not be exported to ONNX with a free batch size "
                f"({type(cause).__name__}: {said}). The network must not branch on its input's values or batch size."
            ) from error


def _describe(model: Any, spec: ModelSpec, metadata: Mapping[str, str]) -> None:
    """Write the metadata, and take out what the exporter noted about this machine."""
    normalization = spec.normalization
    facts = {
        "sanitize.kind": spec.kind,
        "sanitize.architecture": spec.architecture,
        "sanitize.image_size": str(spec.image_size),
        "sanitize.resize": str(spec.to_dict()["resize"]),
        "sanitize.normalization": normalization.name,
        "sanitize.normalization_mean": ", ".join(map(str, normalization.mean)),
        "sanitize.normalization_std": ", ".join(map(str, normalization.std)),
        "sanitize.normalization_place": "inside the graph",
        "sanitize.input": "RGB in [0, 1], float32, (batch, 3, height, width)",
        "sanitize.output_size": str(spec.output_size),
    }
    for proto in (model, model.graph, *model.functions):
        del proto.metadata_props[:]
        proto.doc_string = ""
    for graph in (model.graph, *model.functions):
        for item in (*graph.node, *graph.value_info, *getattr(graph, "input", ()), *getattr(graph, "output", ())):
            if hasattr(item, "metadata_props"):  # inputs of functions are plain names
                del item.metadata_props[:]
                item.doc_string = ""
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
        tensor.doc_string = ""
    for key, value in sorted({**metadata, **facts}.items()):
        model.metadata_props.add(key=key, value=value)
    model.graph.name = spec.kind
    model.producer_name = "sanitize"
    model.producer_version = f"torch {torch.__version__}"


def _providers() -> list[str]:
    """Providers to check with. The GPU build of onnxruntime names CUDA on any machine, so torch is asked instead."""
    available = onnxruntime.get_available_providers()
    wanted = ["CPUExecutionProvider"]
    if torch.cuda.is_available() and "CUDAExecutionProvider" in available:
        wanted.append("CUDAExecutionProvider")
    return wanted


def _difference(network: Network, path: Path, provider: str) -> float:
    """Largest absolute difference between PyTorch and the file in `provider`, over the checked batches."""
    session = _session(path, provider)
    if provider not in session.get_providers():
        _log.warning("onnxruntime could not start %s here; the ONNX file was checked on the CPU only", provider)
        return 0.0
    spec = network.spec
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for batch in _CHECKED_BATCHES:
        images = torch.rand(batch, 3, spec.image_size, spec.image_size, generator=generator)
        with torch.inference_mode():
            expected = network(images)
        try:
            output = torch.from_numpy(session.run([OUTPUTS[spec.kind]], {INPUT: images.numpy()})[0])
        except Exception as error:  # onnxruntime's exceptions have no common root of their own
            raise ExportError(f"onnxruntime ({provider}) cannot run the exported {spec.kind}: {error}") from error
        largest = max(largest, _compare(expected, output, spec, batch, provider))
    return largest


def _compare(expected: Tensor, output: Tensor, spec: ModelSpec, batch: int, provider: str) -> float:
    if not output.shape == expected.shape == (batch, spec.output_size):
        raise ExportError(
            f"the exported {spec.kind} gives {tuple(output.shape)} for a batch of {batch} in {provider}, and PyTorch "
            f"{tuple(expected.shape)}, where {(batch, spec.output_size)} is needed: {spec.architecture} fixes its "
            "batch size."
        )
    difference = float((expected - output).abs().max())
    limit = TOLERANCE * max(1.0, float(expected.abs().max()))
    if not difference <= limit:  # so that NaN fails
        raise ExportError(
            f"the exported {spec.kind} differs from PyTorch by {difference:.3g} for a batch of {batch} in {provider}; "
            f"at most {limit:.3g} is accepted. {spec.architecture} uses something that ONNX computes otherwise."
        )
    return difference


def _session(path: Path, provider: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # TF32 would differ from float32 by 1e-3, which says nothing about the file.
    settings = {"use_tf32": "0"} if provider == "CUDAExecutionProvider" else {}
    with _quiet():
        if settings and hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
        try:
            return onnxruntime.InferenceSession(str(path), options, providers=[(provider, settings)])
        except Exception as error:  # onnxruntime's exceptions have no common root of their own
            raise ExportError(f"onnxruntime ({provider}) cannot load the exported file: {error}") from error


@contextmanager
def _quiet() -> Iterator[io.StringIO]:
    """Collect what the exporter prints and logs: standard output belongs to the result."""
    chatter = io.StringIO()
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir", "onnx")]
    levels = [logger.level for logger in loggers]
    with redirect_stdout(chatter), redirect_stderr(chatter), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield chatter
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
