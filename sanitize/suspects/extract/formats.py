"""Tells the format of a file by its content, and says why a format is not read."""

from __future__ import annotations

from pathlib import Path

from .archives import open_archive

READABLE = ("safetensors", "torch-zip", "pt2")

REFUSED = {
    "torchscript": "a TorchScript archive: it holds a program beside the weights. Ask for a state dict or safetensors",
    "pt2-pickled": "a torch.export archive of the old layout, whose weights themselves are pickled. "
    "Export it again with a current torch, or ask for safetensors",
    "torch-legacy": "torch's legacy format (before 1.6): a row of pickles without an archive around it. "
    "Convert it in a throw-away environment with torch.save, or ask for safetensors",
    "torch-tar": "torch's legacy tar format. Convert it in a throw-away environment, or ask for safetensors",
    "pickle": "a bare pickle, not an archive that torch.save writes. Ask for a state dict written by torch.save, "
    "or for safetensors",
    "onnx": "an ONNX graph. A suspect must come as PyTorch weights, since its network is rebuilt and fine-tuned",
    "hdf5": "an HDF5 file (Keras or TensorFlow), not PyTorch weights",
    "keras": "a Keras archive, not PyTorch weights",
    "skops": "a skops archive, not PyTorch weights",
    "numpy": "numpy arrays, not PyTorch weights",
    "gguf": "a GGUF file, not PyTorch weights",
    "compressed": "a compressed file. Unpack it first",
    "zip": "a zip archive of no known kind",
    "unknown": "in no known format: neither safetensors, nor an archive by torch.save or torch.export",
}
"""Format -> what it is and what to do instead."""

_TORCH_LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # LONG1 of torch.serialization.MAGIC_NUMBER


def detect(path: Path, *, max_bytes: int) -> str:
    """The format of a file: one of `READABLE`, or a key of `REFUSED`.

    Raises:
        ArchiveError: It starts like a zip archive, but is none that is admitted.
    """
    with path.open("rb") as stream:
        head = stream.read(512)
    if head[:2] == b"PK":
        with open_archive(path, max_bytes=max_bytes) as archive:
            return _archive_format(archive.namelist())
    if head[257:262] == b"ustar":
        return "torch-tar"
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        return "torch-legacy" if _TORCH_LEGACY_MAGIC in head[:32] else "pickle"
    signatures = {
        b"\x89HDF": "hdf5",
        b"\x93NUMPY": "numpy",
        b"GGUF": "gguf",
        b"\x1f\x8b": "compressed",
        b"BZh": "compressed",
    }
    for signature, name in signatures.items():
        if head.startswith(signature):
            return name
    if len(head) >= 10 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 30:
        return "safetensors"
    if path.suffix == ".onnx":
        return "onnx"
    if path.suffix in {".pkl", ".pickle", ".joblib", ".dill"}:
        return "pickle"  # protocols 0 and 1 have no first bytes of their own
    return "unknown"


def _archive_format(names: list[str]) -> str:
    leaves = {name.partition("/")[2] for name in names} | set(names)
    if "constants.pkl" in leaves or any(leaf.startswith("code/") for leaf in leaves):
        return "torchscript"
    if any(leaf.startswith("data/weights/") and leaf.endswith("_weights_config.json") for leaf in leaves):
        return "pt2"
    if leaves & {"serialized_state_dict.pt", "serialized_state_dict.json", "serialized_exported_program.json"}:
        return "pt2-pickled"
    if "archive_format" in leaves or any(leaf.startswith("data/weights/") for leaf in leaves):
        return "pt2-pickled"
    if "data.pkl" in leaves:
        return "torch-zip"
    if "model.weights.h5" in leaves:
        return "keras"
    if "schema.json" in leaves:
        return "skops"
    return "numpy" if names and all(name.endswith(".npy") for name in names) else "zip"
