"""The benchmark of decoupled training: its table has the paper's columns, and its baseline is of equal size."""

from __future__ import annotations

import pytest

from benchmarks import equal_size
from benchmarks.decoupled import ATTACKS, PAPER, SETTINGS, cells
from benchmarks.profiles import profile_named
from sanitize.attacks import ATTACKS as KNOWN
from sanitize.suspects import build
from sanitize.trainers import Decoupled, SimCLR, Supervised


@pytest.mark.parametrize("name", list(SETTINGS))
def test_every_cell_has_settings_and_every_published_number_a_cell(name):
    made = cells(profile_named(name))
    columns = {cell.column for cell in made}
    assert len({(cell.row, cell.column) for cell in made}) == len(made)
    assert set(ATTACKS.values()) <= set(KNOWN)
    missing = set().union(*(set(values) for values in PAPER.values())) - columns
    assert missing == ({"nad", "neural-cleanse"} if name == "small" else set())
    for method, key in ((Supervised, "supervised"), (SimCLR, "features"), (Decoupled, "training")):
        method(**SETTINGS[name][key])


@pytest.mark.parametrize("name", ["small-cnn", "resnet18-cifar"])
def test_the_baseline_is_as_large_as_the_network_with_attention(name):
    def size(architecture: str) -> int:
        backbone = build(architecture, kind="encoder", image_size=32).backbone
        return sum(parameter.numel() for parameter in backbone.parameters())

    attentive, baseline = size(f"{name}-attention"), size(f"{equal_size.__file__}:{name.replace('-', '_')}")
    assert attentive < baseline < 1.05 * attentive
