"""The machinery of benchmarks: cells run once, pieces continue, tables show what was measured and what was not."""

from __future__ import annotations

import json
import signal
import time

import pytest
import torch
from mlflow import MlflowClient

from benchmarks.bmaiu import AT_96_PX, BACKBONES, IMAGENETTE, TABLES
from benchmarks.cells import EXPERIMENT, Cell, run_cells
from benchmarks.lab import Lab
from benchmarks.pieces import time_limit
from benchmarks.profiles import DIGITS, SMALL, Profile, profile_named
from benchmarks.shards import SHARD_BYTES, pack, unpack
from benchmarks.tables import write_table
from benchmarks.uau import PARTS, kinds_of_trigger
from sanitize.data.triggers import FrequencyTrigger
from sanitize.errors import ConfigError, DataError

METRICS = {"clean_accuracy": "BA", "attack_success_rate": "ASR"}


def lab(folder, seed=0) -> Lab:
    return Lab(DIGITS, folder, seed=seed, device="cpu")


def cell(row="a", **measured) -> Cell:
    return Cell(row, "none", lambda _: measured, {"clean_accuracy": 0.9})


def test_a_cell_runs_once_and_is_an_mlflow_run(tmp_path, store_uri):
    calls = []

    def measure(lab):
        calls.append(lab.seed)
        return {"clean_accuracy": 0.5, "attack_success_rate": None}

    for _ in range(2):
        run_cells("study", [Cell("a", "none", measure)], lab(tmp_path), tracking_uri=store_uri)
    run_cells("study", [Cell("a", "none", measure)], lab(tmp_path, seed=1), tracking_uri=store_uri)
    assert calls == [0, 1]
    record = json.loads((tmp_path / "results/study-digits/a--none--seed0.json").read_text())
    assert record["ours"] == {"clean_accuracy": 0.5, "attack_success_rate": None}
    assert {"commit", "hardware", "torch", "date", "minutes", "seed", "profile"} <= record.keys()
    client = MlflowClient(store_uri)
    runs = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    assert runs[0].data.metrics == {"ours/clean_accuracy": 0.5}


def test_what_is_made_with_other_settings_or_another_seed_has_another_name(tmp_path):
    keys = [
        lab(tmp_path).key("a", {"epochs": 1}),
        lab(tmp_path).key("a", {"epochs": 2}),
        lab(tmp_path, seed=1).key("a", {"epochs": 1}),
        lab(tmp_path).key("b", {"epochs": 1}),
    ]
    assert len(set(keys)) == 4
    assert keys[0] == lab(tmp_path).key("a", {"epochs": 1})


def test_a_failed_cell_leaves_no_result(tmp_path, store_uri):
    def fail(lab):
        raise ConfigError("no")

    with pytest.raises(ConfigError):
        run_cells("study", [Cell("a", "none", fail)], lab(tmp_path), tracking_uri=store_uri)
    assert not list(tmp_path.glob("results/**/*.json"))


def test_the_table_tells_measured_from_not_measured_and_not_established(tmp_path, store_uri):
    cells = [
        cell("taken", clean_accuracy=0.8, attack_success_rate=0.02, suspect_attack_success_rate=0.97),
        cell("weak", clean_accuracy=0.8, attack_success_rate=None, suspect_attack_success_rate=0.2),
    ]
    run_cells("study", cells, lab(tmp_path), tracking_uri=store_uri)
    run_cells("study", cells[:1], lab(tmp_path, seed=1), tracking_uri=store_uri)
    page = tmp_path / "page.md"
    folder = tmp_path / "results/study-digits"
    write_table(page, "Title", "Preface.", [*cells, cell("later")], folder, METRICS, percent=True)
    rows = [line for line in page.read_text().splitlines() if line.startswith("| ")][1:]
    assert rows[0].startswith("| taken | none | 90.0 / n. m. | 80.0 / 2.0 | 0, 1 |")
    assert rows[1].startswith("| weak | none | 90.0 / n. m. | 80.0 / n. m. (attack not established) | 0 |")
    assert rows[2].startswith("| later | none | 90.0 / n. m. | not run | - |")


def test_a_network_is_made_once_and_comes_back_the_same(tmp_path):
    made = []

    def make(engine):
        made.append(1)
        return lab(tmp_path).untrained("small-cnn"), list(kinds_of_trigger(32).values())

    first = lab(tmp_path).keep("x", {"a": 1}, make)
    again = lab(tmp_path).keep("x", {"a": 1}, make)
    assert len(made) == 1
    lab(tmp_path).keep("x", {"a": 2}, make)
    assert len(made) == 2
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first.network(images), again.network(images))
    for kind, trigger in zip(kinds_of_trigger(32).values(), again.triggers, strict=True):
        assert trigger.target == kind.target
        assert (trigger.apply(images) - kind.apply(images)).abs().max() < 0.01


def test_a_piece_ends_after_its_minutes(capsys):
    started = time.perf_counter()
    with time_limit(0.2 / 60):
        while time.perf_counter() - started < 5:
            time.sleep(0.01)
    assert time.perf_counter() - started < 2
    assert "again to continue" in capsys.readouterr().out
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


@pytest.mark.parametrize("half", [False, True])
def test_the_work_folder_travels_as_small_files(tmp_path, half):
    work = tmp_path / "work"
    (work / "checkpoints").mkdir(parents=True)
    noise = torch.rand(6_000_000, generator=torch.Generator().manual_seed(0))  # 24 MB, incompressible
    torch.save({"network": {"w": noise}, "steps": 3}, work / "checkpoints" / "a.ckpt")
    (work / "results.json").write_text("{}")
    (work / "mlflow.db").write_text("stays")
    shards = pack(work, tmp_path / "shards", half=half)
    assert all(path.stat().st_size <= SHARD_BYTES for path in shards)
    assert len(shards) == (1 if half else 2)
    unpack(tmp_path / "shards", tmp_path / "again")
    state = torch.load(tmp_path / "again/checkpoints/a.ckpt", weights_only=True)
    assert state["steps"] == 3
    assert torch.equal(state["network"]["w"].float(), noise.half().float() if half else noise)
    assert not (tmp_path / "again" / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("table", "column", "averages"),
    [
        ("3", "none", {"attack_success_rate": 68.87, "poison_accuracy": 23.86}),
        ("3", "clp", {"attack_success_rate": 18.74, "poison_accuracy": 47.44}),
        ("3", "i-bau", {"attack_success_rate": 1.08, "poison_accuracy": 56.17}),
        ("3", "ssl-cleanse", {"attack_success_rate": 31.26, "poison_accuracy": 40.34}),
        ("3", "bmaiu", {"attack_success_rate": 9.05, "poison_accuracy": 64.36}),
        ("4", "none", {"clean_accuracy": 59.21, "attack_success_rate": 46.10, "poison_accuracy": 29.90}),
        ("4", "clp", {"clean_accuracy": 52.34, "attack_success_rate": 29.16, "poison_accuracy": 31.75}),
        ("4", "i-bau", {"clean_accuracy": 51.83, "attack_success_rate": 1.56, "poison_accuracy": 46.13}),
        ("4", "ssl-cleanse", {"poison_accuracy": 39.67}),
        ("4", "bmaiu", {"clean_accuracy": 57.91, "attack_success_rate": 1.58, "poison_accuracy": 52.80}),
    ],
)
def test_published_values_were_copied_rightly(table, column, averages):
    """Their column means are the paper's printed averages, as far as these agree with its own rows."""
    published = [cell.paper for cell in TABLES[table].cells() if cell.column == column]
    assert len(published) == {"3": 8, "4": 3}[table]
    for metric, average in averages.items():
        values = [100 * paper[metric] for paper in published]
        assert sum(values) / len(values) == pytest.approx(average, abs=0.02)


def test_published_values_of_ten_targets_were_copied_rightly():
    for cell_, rate in zip(TABLES["5"].cells(), [89.63, 76.71, 10.39, 13.40, 11.42], strict=False):
        rates = [value for name, value in cell_.paper.items() if name.endswith("attack_success_rate_all")]
        assert 100 * sum(rates) / 10 == pytest.approx(rate, abs=0.02)


def test_the_table_of_large_images_has_its_own_scales():
    study = TABLES["4"]
    assert len(study.cells()) == 18
    assert [cell.column for cell in study.cells() if not cell.paper] == ["uau"] * 3
    for name in ("paper", "small"):
        profile = profile_named(name, study.profiles)
        assert (profile.image_size, profile.architecture) == (96, "efficientnet_v2_s")
        assert f"`{profile.train}`" in study.preface(profile)
    assert "bmaiu max_steps 20" in study.preface(IMAGENETTE["small"])
    with pytest.raises(ConfigError, match="paper, small"):
        profile_named("digits", study.profiles)


def test_ctrl_is_as_strong_at_96_px_as_at_32_px():
    def change(size: int, **settings) -> float:
        grey = torch.full((1, 3, size, size), 0.5)
        return float((FrequencyTrigger(100.0, **settings).apply(grey) - grey).abs().mean())

    assert change(96, **AT_96_PX["ctrl"]) == pytest.approx(change(32), rel=0.01)
    assert change(96) < change(32) / 2


def test_every_study_names_its_cells_once():
    for study in (*TABLES.values(), *PARTS.values()):
        names = [(cell.row, cell.column) for cell in study.cells()]
        assert len(names) == len(set(names)), study.name


def test_wrong_profile_and_missing_data(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="paper, small, digits"):
        profile_named("tiny")
    monkeypatch.setenv("SANITIZE_DATA", str(tmp_path))
    with pytest.raises(DataError, match="SANITIZE_DATA"):
        SMALL.images("train")
    assert isinstance(profile_named("digits"), Profile)


def test_the_page_of_the_triggers_tells_how_they_are_planted():
    told = {profile.name: PARTS["triggers"].preface(profile) for profile in (SMALL, DIGITS)}
    assert "planted with reference first" in told["small"]
    assert "planted" not in told["digits"]


def test_the_small_scale_of_the_backbones_shares_no_network_with_that_of_the_other_tables():
    small, others = BACKBONES["small"], SMALL
    assert small.name == others.name  # so that the settings alone tell them apart
    assert small.pretraining != others.pretraining and small.attack != others.attack
    assert TABLES["7"].profiles is BACKBONES
