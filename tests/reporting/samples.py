"""Reports that the tests of every view share."""

from __future__ import annotations

from typing import Any

import torch

from sanitize.reporting.figures import Figure, losses, picture, projection
from sanitize.types import Finding, Report, Severity, Verdict

HOSTILE = "<script>alert(1)</script>|`x`\x1b[2J\x00\u202e\"'&{{ 7*7 }}\udc80\nsecond"


def report(verdict: Verdict = Verdict.PASS, **changes: Any) -> Report:
    values: dict[str, Any] = {
        "tool": {"name": "sanitize", "version": "0.1.0", "commit": "1f0c2ab"},
        "subject": {
            "uri": "models:/suspect/1",
            "kind": "encoder",
            "architecture": "resnet18-cifar",
            "sha256": "ab" * 32,
        },
        "defense": {
            "name": "bmaiu",
            "paper": {
                "title": "Backdoor mitigation",
                "reference": "A. Author, 2024",
                "url": "https://example.org/paper",
            },
            "parameters": {
                "epochs": {"value": 20, "paper": 20, "description": "passes over the data in each stage"},
                "learning_rate": {"value": 0.01, "paper": 0.05, "description": "of SGD in both stages"},
                "freeze_batch_norm": {"value": True, "paper": None, "description": "keep the running statistics"},
            },
        },
        "data": {"uri": "digits#0:140", "sha256": "cd" * 32, "images": 140, "classes": 10},
        "verdict": verdict,
        "reasons": ["attack success rate 99.7% before, 6.6% after (allowed 10.0%)", "clean accuracy kept"],
        "findings": [
            Finding(
                rule="artifact-unknown-global",
                severity=Severity.ERROR,
                message="The pickle names posix.system, which a model does not need.",
                evidence={"global": "posix.system", "count": 1},
            ),
            Finding(rule="head-dropped", severity=Severity.NOTE, message="fc.weight, fc.bias were dropped as a head."),
        ],
        "metrics": {
            "before": {
                "clean_accuracy": 0.9742,
                "attack_success_rate": 0.997,
                "attack_success_rate_all": 0.9973,
                "base_rate": 0.002,
                "poison_accuracy": 0.103,
                "knn_accuracy": 0.9655,
                "clean_accuracy_old_head": 0.9742,
                "canary_similarity": 0.912,
                "drill_gap": None,
            },
            "after": {
                "clean_accuracy": 0.9705,
                "attack_success_rate": 0.066,
                "attack_success_rate_all": 0.161,
                "base_rate": 0.004,
                "poison_accuracy": 0.914,
                "knn_accuracy": 0.961,
                "clean_accuracy_old_head": 0.83,
                "canary_similarity": 0.204,
                "drill_gap": None,
            },
        },
        "unmeasured": {"drill_gap": "no drill was asked for (--drill)"},
        "outputs": {
            "model_uri": "models:/suspect/2",
            "alias": "sanitized",
            "onnx_uri": "runs:/0f1e2d3c4b5a69788796a5b4c3d2e1f0/encoder.onnx",
            "run_id": "0f1e2d3c4b5a69788796a5b4c3d2e1f0",
            "run_url": "http://127.0.0.1:5000/#/experiments/1/runs/0f1e2d3c4b5a69788796a5b4c3d2e1f0",
            "command": "sanitize encoder models:/suspect/1 --method bmaiu --seed 0",
            "next": "sanitize verify models:/suspect/2",
        },
        "timings": {"implant": 2.1, "unlearn": 1.9},
        "throughput": {"train_images_per_second": 13123.4},
        "seed": 0,
        "environment": {"python": "3.11.9", "torch": "2.15.0", "device": "cpu", "cuda": None},
    }
    return Report(**{**values, **changes})


def hostile(verdict: Verdict = Verdict.FAIL) -> Report:
    return report(
        verdict,
        subject={"uri": f"models:/{HOSTILE}/1", "kind": "encoder", "architecture": HOSTILE, "sha256": HOSTILE},
        defense={"name": HOSTILE, "paper": HOSTILE, "parameters": {HOSTILE: HOSTILE}},
        data={"uri": HOSTILE},
        reasons=[HOSTILE],
        findings=[Finding(rule=HOSTILE, severity=Severity.ERROR, message=HOSTILE, evidence={HOSTILE: [HOSTILE]})],
        metrics={"before": {HOSTILE: 0.5}, "after": {HOSTILE: None}},
        unmeasured={HOSTILE: HOSTILE},
        outputs={
            "model_uri": HOSTILE,
            HOSTILE: HOSTILE,
            "command": HOSTILE,
            "next": [HOSTILE],
            "policy": f"/{HOSTILE}",
        },
        timings={HOSTILE: 1.0},
        throughput={HOSTILE: 1.0},
        environment={HOSTILE: HOSTILE},
    )


def empty(verdict: Verdict = Verdict.INCONCLUSIVE) -> Report:
    return Report(tool={}, subject={}, defense={}, data={}, verdict=verdict, reasons=[])


def figures() -> list[Figure]:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 64, generator=generator) * 2
    clean = centres[torch.arange(300) % 10] + torch.randn(300, 64, generator=generator)
    stuck = centres[:1] * 3 + 0.3 * torch.randn(300, 64, generator=generator)
    steps = range(20)
    return [
        projection({"clean": clean, "triggered": stuck}, {"clean": clean, "triggered": clean + 0.2}),
        losses(
            {
                "implant": [{"effectiveness": 1 - 0.9 * e / 20, "utility": 0.02 + 0.1 / (e + 1)} for e in steps],
                "unlearn": [{"unlearn": 0.9 - 0.8 * e / 20, "utility": 0.05, "anchor": float("nan")} for e in steps],
            }
        ),
        picture(
            "canary", torch.rand(3, 4, 4, generator=generator), "The canary that was planted and removed, $4x4$ px"
        ),
    ]
