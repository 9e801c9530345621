"""Puts a suspect's tensors into a network of ours or the defender's, strictly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sanitize.errors import ArchitectureError
from sanitize.suspects.architectures import Architecture, build
from sanitize.suspects.heads import is_head, is_momentum
from sanitize.suspects.matching import Match, find_prefixes, match, renumber
from sanitize.suspects.networks import Network, wrap
from sanitize.suspects.readers import Tensors
from sanitize.types import Finding, ModelKind, ModelSpec, Normalization, Severity

_SHOWN = 4


@dataclass(frozen=True)
class Rebuilt:
    """A suspect as a network.

    Args:
        network: `Encoder` or `Classifier`, in eval mode.
        dropped: Keys of the suspect that were left out: heads, projectors, momentum copies.
        findings: Remarks on the fit.
        old_head: The suspect's own linear head over the D features, weight (C, D) and bias (C,), when it had one.
    """

    network: Network
    dropped: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    old_head: tuple[Tensor, Tensor] | None = None


def rebuild(
    tensors: Tensors, *, kind: ModelKind, architecture: str, normalization: Normalization, image_size: int
) -> Rebuilt:
    """Load a suspect's tensors strictly into an architecture that the defender names.

    Prefixes such as ``module.`` or ``encoder_q.`` are found by what makes the keys match. An encoder drops what is
    named as head, projector, predictor or momentum copy, and lists it; anything else that does not match is an error.

    Args:
        tensors: From `sanitize.suspects.readers.read_tensors`.
        kind: ``encoder`` or ``classifier``.
        architecture: See `sanitize.suspects.architectures.build`.
        normalization: Goes into the network, whose input is RGB in [0, 1].
        image_size: Height and width in pixels.

    Raises:
        ConfigError: The architecture is unknown or cannot be built.
        ArchitectureError: Weights and network do not belong together; the message names the keys.
    """
    state = tensors.state
    if kind == "classifier":
        plan = _classifier(state, architecture, image_size)
    else:
        plan = build(architecture, kind=kind, image_size=image_size)
    result = _best_match(state, plan, kind)
    if not result.complete:
        raise ArchitectureError(_explain(result, plan, architecture, kind, len(state)))
    plan.backbone.load_state_dict(result.state, strict=True)
    spec = ModelSpec(
        kind=kind,
        architecture=architecture,
        normalization=normalization,
        image_size=image_size,
        output_size=plan.output_size,
    )
    network = wrap(plan.backbone, spec)
    old_head = _old_head(state, result, plan) if kind == "encoder" else None
    return Rebuilt(network, sorted(result.dropped), _findings(result), old_head)


def _classifier(state: Mapping[str, Tensor], architecture: str, image_size: int) -> Architecture:
    if ".py" in architecture:  # the defender's own function fixes the number of classes
        return build(architecture, kind="classifier", image_size=image_size)
    plan = build(architecture, kind="classifier", image_size=image_size, classes=2)
    expected = plan.backbone.state_dict()
    for prefix in find_prefixes(state.keys(), expected.keys()):
        weight = state.get(f"{prefix}{plan.head}.weight")
        if weight is not None and weight.ndim >= 2:
            return build(architecture, kind="classifier", image_size=image_size, classes=len(weight))
    raise ArchitectureError(
        f"no head weights ({plan.head}.weight) among the {len(state)} tensors: this is no {architecture} classifier. "
        "It may be an encoder: use `sanitize encoder`. Or check --arch."
    )


def _best_match(state: Mapping[str, Tensor], plan: Architecture, kind: ModelKind) -> Match:
    expected = plan.backbone.state_dict()
    named = renumber(state.keys(), plan.backbone)
    renamed = {named.get(key, key): value for key, value in state.items()} if named else {}
    best: Match | None = None
    for candidate in (state, renamed):
        prefixes = find_prefixes(candidate.keys(), expected.keys())
        for prefix in prefixes[:4]:
            found = match(candidate, expected, prefix, plan.head_prefixes, heads=kind == "encoder")
            found.renumbered = candidate is renamed
            if best is None or _faults(found) < _faults(best):
                best = found
        if best is not None and best.complete:
            break
    if best is None:
        best = match(state, expected, "", plan.head_prefixes, heads=kind == "encoder")
    if best.renumbered:
        original = {new: old for old, new in named.items()}
        best.dropped = [original.get(key, key) for key in best.dropped]
        best.unexpected = [original.get(key, key) for key in best.unexpected]
    return best


def _faults(found: Match) -> int:
    return len(found.missing) + len(found.mismatched) + len(found.unexpected)


def _explain(result: Match, plan: Architecture, architecture: str, kind: ModelKind, count: int) -> str:
    def some(title: str, items: list[str]) -> str:
        more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
        return f"{len(items)} {title}: {', '.join(items[:_SHOWN])}{more}" if items else ""

    parts = [some("missing", result.missing), some("of another shape", result.mismatched)]
    parts.append(some("unexpected", result.unexpected))
    listed = "; ".join(part for part in parts if part)
    if not result.source:
        hint = f"None of the {count} keys fits: this is another architecture. Check --arch."
    elif (
        any(text.startswith(f"{result.prefix}conv1.weight ") for text in result.mismatched) and "resnet" in architecture
    ):
        other = "resnet18" if "cifar" in architecture else "resnet18-cifar"
        hint = f"The first convolution differs: try the other stem (such as --arch {other})."
    elif any("pos_embedding" in text for text in result.mismatched):
        hint = "The position embedding depends on the image size: check --image-size."
    elif kind == "classifier" and any(plan.head and plan.head in text for text in result.missing):
        hint = "The head is missing: it may be an encoder, use `sanitize encoder`."
    elif len(result.unexpected) >= len(result.state) and not result.missing:
        hint = "The file seems to hold a second network: put the one that is meant into a file of its own."
    else:
        hint = "Check --arch, or give your own network as --arch file.py:function."
    return f"the weights do not fit {architecture} as {kind}: {listed}. {hint}"


def _old_head(state: Mapping[str, Tensor], result: Match, plan: Architecture) -> tuple[Tensor, Tensor] | None:
    if any(is_momentum(part) for key in result.dropped for part in key.split(".")):
        return None  # a self-supervised method's projection, no class head
    heads = [
        key
        for key in result.dropped
        if key.endswith(".weight") and (key == f"{result.prefix}{plan.head}.weight" or is_head(key.split(".")[-2]))
    ]
    weights = [key for key in heads if state[key].shape[1:] == (plan.output_size,)]
    stem = weights[0].removesuffix("weight") if len(weights) == 1 == len(heads) else None
    if stem is None or {key for key in result.dropped if key.startswith(stem)} - {f"{stem}weight", f"{stem}bias"}:
        return None
    weight = state[f"{stem}weight"]
    bias = state.get(f"{stem}bias", torch.zeros(len(weight)))
    return (weight, bias) if bias.shape == (len(weight),) else None


def _findings(result: Match) -> list[Finding]:
    findings = []
    if result.dropped:
        groups = sorted({key.rpartition(".")[0] or key for key in result.dropped})
        message = f"{len(result.dropped)} tensors are no part of the network and were dropped: {', '.join(groups[:6])}."
        evidence = {"keys": sorted(result.dropped)[:200]}
        findings.append(Finding(rule="weights-dropped", severity=Severity.NOTE, message=message, evidence=evidence))
    if result.renumbered:
        message = "Numbered layers were matched with the architecture's names by their order."
        findings.append(Finding(rule="weights-renumbered", severity=Severity.NOTE, message=message))
    return findings
