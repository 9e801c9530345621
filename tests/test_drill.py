"""The drill: canaries that are planted for real, counted rightly, repeatable, and refused where they make no sense."""

from __future__ import annotations

import json
from typing import ClassVar

import pytest
import torch
from mlflow import MlflowClient
from pydantic import Field
from typer.testing import CliRunner

from sanitize import DBR, Policy, Sanitizer
from sanitize.canaries import draw_trigger, families
from sanitize.cli import app
from sanitize.data import load_images
from sanitize.defenses import CLP, FineTune, Need, Paper, Purified, Purifier
from sanitize.drill import ATTEMPTS, Drill, _unseen
from sanitize.errors import ConfigError, DataError
from sanitize.policies import load_policy
from sanitize.suspects import Network
from sanitize.training import Engine
from tests.classifiers import small_classifier
from tests.cli.test_commands import sanitize
from tests.encoders import defender_images, train_images
from tests.encoders import test_images as held_out_images


class Known(Purifier):
    """What becomes of each canary in turn is known: left as it is, replaced by the clean network, refused."""

    name: ClassVar[str] = "known"
    summary: ClassVar[str] = "reference for tests"
    paper: ClassVar[Paper] = Paper("none", "none", "none")
    kinds: ClassVar[frozenset] = frozenset({"classifier"})
    needs: ClassVar[frozenset[Need]] = frozenset({Need.MODEL})

    clean: object
    turns: list[str] = Field(default_factory=lambda: ["left", "replaced", "refused"])

    def purify(self, network: Network, data, engine: Engine) -> Purified:
        turn = self.turns.pop(0)
        if turn == "refused":
            raise DataError("no cluster")
        return Purified(network if turn == "left" else self.clean, {}, {}, {})


def prepared(count: int, defense: Purifier, *, kind: str = "classifier", policy: Policy | None = None) -> Drill:
    drill = Drill(count, defense, policy or Policy())
    drill.check(kind, data=defender_images(), probe_data=train_images(), test_data=held_out_images())
    return drill


@pytest.mark.slow
def test_each_outcome_is_seen_for_what_it_is_and_a_drill_resumes_to_the_same(classifiers, tmp_path):
    weights = [value.clone() for value in classifiers.clean.state_dict().values()]
    engine = Engine(device="cpu", seed=1)
    drill = prepared(3, Known(clean=classifiers.clean))
    first = drill.run(classifiers.clean, defender_images(), engine, tmp_path, resume=False)
    left, replaced, refused = first.canaries
    assert [canary.family for canary in first.canaries] == ["patch", "blend", "frequency"]
    assert all(canary.taken and canary.planted_success_rate > 0.9 for canary in first.canaries)
    assert (left.outcome, left.success_rate, left.clean_accuracy_loss) == ("survived", left.planted_success_rate, 0)
    assert left.base_rate < 0.2
    assert (replaced.outcome, refused.outcome) == ("removed", "survived")
    assert replaced.success_rate - replaced.base_rate < 0.2
    assert refused.stopped == "no cluster" and refused.success_rate is None
    assert (first.planted, first.survived) == (3, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"canary-{number}.ckpt" for number in range(3)]
    assert all(torch.equal(old, new) for old, new in zip(weights, classifiers.clean.state_dict().values(), strict=True))

    (tmp_path / "canary-1.ckpt").unlink()  # as if it had been killed at the second
    again = prepared(3, Known(clean=classifiers.clean, turns=["replaced"]))
    assert again.run(classifiers.clean, defender_images(), engine, tmp_path, resume=True) == first


def test_a_canary_that_cannot_be_planted_is_tried_again_and_then_left_out(tmp_path):
    network = small_classifier()
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    drill = prepared(1, CLP())
    result = drill.run(network, None, Engine(device="cpu"), tmp_path, resume=False)
    (canary,) = result.canaries
    assert (canary.outcome, canary.attempts, canary.planted_success_rate) == ("not taken", ATTEMPTS, None)
    assert result.bound is None


@pytest.mark.parametrize("family", families(32))
def test_triggers_are_random_by_seed_and_change_images(family):
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def drawn(seed: int):
        return draw_trigger(family, 32, 5, torch.Generator().manual_seed(seed))

    first, words = drawn(0)
    assert first.target == 5
    assert words
    assert first.sha256 == drawn(0)[0].sha256
    assert len({drawn(seed)[0].sha256 for seed in range(8)}) == 8
    assert not torch.equal(first.apply(images), images)


def test_patches_are_at_one_place_or_at_any_and_fit():
    drawn = [draw_trigger("patch", 32, 0, torch.Generator().manual_seed(seed))[0] for seed in range(30)]
    assert {trigger.position == "random" for trigger in drawn} == {True, False}
    assert {4, 8} <= {trigger.size[0] for trigger in drawn} <= set(range(4, 9))
    for trigger in drawn:
        trigger.apply(torch.zeros(1, 3, 32, 32))


def test_what_the_defence_gets_and_repetitions_are_not_measured():
    data, test = load_images("digits#0:100"), load_images("digits#50:200")
    assert _unseen(test, data).tolist() == list(range(50, 150))
    assert _unseen(test.subset(torch.tensor([60, 61, 60])), data).tolist() == [0, 1]
    assert len(_unseen(test, None)) == 150


@pytest.mark.parametrize(
    ("count", "defense", "policy", "message"),
    [
        (0, FineTune(), {}, "1 or more"),
        (-3, FineTune(), {}, "1 or more"),
        (5, DBR(), {}, "d-br works from the poisoned images"),
        (19, FineTune(), {"minimum_removal_bound": 0.86}, "--drill 20 or more"),
    ],
)
def test_a_drill_that_makes_no_sense_is_refused(count, defense, policy, message):
    with pytest.raises(ConfigError, match=message):
        Sanitizer(defense, drill=count, policy=Policy(**policy))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("classifier", {"test_data": None}, "give --test-data"),
        ("encoder", {"probe_data": None}, "give --probe-data and --test-data"),
        ("encoder", {"test_data": None}, "give --probe-data and --test-data"),
        ("classifier", {"test_data": load_images("digits#1400:1499")}, "there are 99"),
        ("classifier", {"test_data": load_images("digits#0:300")}, "there are 0"),
        ("classifier", {"test_data": load_images("digits#1400:1600").without_labels()}, "needs labels"),
    ],
)
def test_images_that_are_missing_or_not_held_out_are_refused(kind, changes, message):
    given = {"data": load_images("digits#0:420"), "probe_data": train_images(), "test_data": held_out_images()}
    with pytest.raises(DataError, match=message):
        Drill(3, FineTune(), Policy()).check(kind, **given | changes)


def test_one_class_is_not_enough():
    test = load_images("digits")
    ones = test.subset(test.labels == 1)
    with pytest.raises(DataError, match="of 1"):
        Drill(3, FineTune(), Policy()).check("classifier", data=None, probe_data=None, test_data=ones)


@pytest.mark.slow
def test_the_command_counts_survivors_and_judges_by_the_policy_of_the_file(suspect, tmp_path):
    path = tmp_path / "loose.yaml"
    path.write_text("maximum_clean_accuracy_loss: 0.9\nminimum_removal_bound: 0.2\n")
    result = sanitize(
        "encoder", "models:/suspect/1", "--method", "fine-tune", "--set", "epochs=1", "--drill", "2", "--policy", path,
        "--format", "json", "--workdir", "job", "--output", "out.txt", folder=tmp_path, store=suspect,
    )  # fmt: skip
    assert result.returncode == 1, result.stderr  # one epoch of fine-tuning removes nothing
    report = json.loads(result.stdout)
    policy, drill = report["defense"]["policy"], report["defense"]["drill"]
    assert [canary["outcome"] for canary in drill["canaries"]] == ["survived", "survived"]
    assert [canary["family"] for canary in drill["canaries"]] == drill["families"] == ["patch", "blend"]
    after = report["metrics"]["after"]
    assert (after["drill/planted"], after["drill/survived"], after["drill/removal_bound"]) == (2, 2, 0)
    assert f"{drill['statement']} (the policy loose requires 20.0%)" in report["reasons"]
    assert policy == load_policy(path).model_dump()
    assert report["outputs"]["policy"] == str(path)
    assert f"--policy {path} --drill 2" in report["outputs"]["command"]
    assert report["timings"]["drill"] > 0
    assert "Drill: canary 2 of 2, blend: survived." in result.stderr
    assert drill["statement"] in " ".join((tmp_path / "out.txt").read_text().split())
    page = (tmp_path / "job" / "report.html").read_text()
    assert drill["statement"] in page and policy["sha256"] in page
    assert not (tmp_path / "job" / "checkpoints").exists()
    client = MlflowClient(suspect)
    assert client.get_model_version("suspect", "2").tags["sanitize.policy"] == f"loose@sha256:{policy['sha256']}"
    run = client.get_run(report["outputs"]["run_id"])
    assert run.data.metrics["after/drill/removal_bound"] == 0
    assert len(client.get_metric_history(run.info.run_id, "drill/success_rate")) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encoder", "models:/x/1", "--method", "clp", "--drill", "0"], "--drill"),
        (["encoder", "models:/x/1", "--method", "clp", "--drill", "many"], "--drill"),
        (["classifier", "models:/x/1", "--method", "d-br", "--drill", "3"], "d-br works from the poisoned images"),
    ],
)
def test_wrong_drills_are_usage_errors(arguments, message):
    result = CliRunner().invoke(app, arguments, env={"NO_COLOR": "1", "TERM": "dumb"})
    assert result.exit_code == 2
    assert message in result.stderr
