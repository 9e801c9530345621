"""D-BR beyond the table: its loss, its options, its resume, what is refused, and a suspect that others made."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.classifiers import third_party
from benchmarks.profiles import data_folder
from sanitize import DBR
from sanitize.data import DeviceImages, ImageSet, load_images
from sanitize.data.crops import PaddedCrops
from sanitize.defenses.unlearning import InTurns, Passes
from sanitize.defenses.unlearning_parts import Parts
from sanitize.errors import ConfigError, DataError
from sanitize.evaluation import ClassifierEvaluator
from sanitize.functional.unlikelihood import unlikelihood
from sanitize.training import Engine, NullRecorder
from tests.classifiers import small_classifier

SUSPECT = data_folder().parent / "suspects" / "badnets-cifar10"
SHORT = {"rounds": 2, "batch_size": 32, "maximum_accuracy_loss": 1.0}
OPTIONS = [
    {"form": "published"},
    {"rounds": 1},
    {"batch_size": 16},
    {"learning_rate": 1e-4},
    {"momentum": 0.5},
    {"weight_decay": 0.1},
    {"unlearn_weight": 1.0},
    {"relearn_weight": 0.1},
    {"clip_norm": 0.01},
    {"rest_share": 0.99},
    {"suspect_weight": 0.0},
    {"crop_padding": 0},
    {"flip": 0.0},
]
SPLIT_OPTIONS = {"decision", "draws", "clean_share", "poisoned_share"}


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in network.state_dict().values()])


def suspected_data(count: int = 96) -> ImageSet:
    """Digits of which every sixth is suspected; half of these are labelled as the untrained classifier sees them."""
    data = load_images(f"digits#0:{count}")
    row = torch.arange(count)
    with torch.inference_mode():
        seen = small_classifier()(data.images / 255).argmax(dim=1)
    return replace(data, labels=torch.where(row % 12 == 0, seen, data.labels), suspected=row % 6 == 0)


def purified(data: ImageSet | None = None, *, seed: int = 0, engine: Engine | None = None, **options):
    engine = engine or Engine(device="cpu", seed=seed)
    return DBR(**SHORT | options).purify(small_classifier(), data or suspected_data(), engine)


@pytest.fixture(scope="module")
def reference() -> torch.Tensor:
    return weights(purified().network)


def test_unlikelihood_is_that_of_a_loop():
    logits = 3 * torch.randn(40, 5, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.arange(40) % 5
    chances = [row.softmax(0)[y] for row, y in zip(logits, labels, strict=True)]
    values = [-torch.log(1 - chance) for chance in chances if chance > 1 / 5]
    loss, matching = unlikelihood(logits, labels)
    torch.testing.assert_close(loss.double(), torch.stack(values).mean(), rtol=1e-5, atol=0)
    assert float(matching) == pytest.approx(len(values) / 40)
    assert 0 < len(values) < 40


@pytest.mark.parametrize("margin", [1.0, 20.0, 80.0])
def test_unlikelihood_pushes_confident_images_where_ascent_does_not(margin):
    logits = torch.tensor([[margin, 0.0, -1.0]], requires_grad=True)
    labels = torch.tensor([0])
    (slope,) = torch.autograd.grad(unlikelihood(logits, labels)[0], logits)
    assert slope[0, 0] > 0.6
    torch.testing.assert_close(slope[0, 0], logits.softmax(dim=1)[0, 0].detach())
    (ascent,) = torch.autograd.grad(-torch.nn.functional.cross_entropy(logits, labels), logits)
    assert (ascent[0, 0].abs() < 1e-6) == (margin >= 20)


def test_unlikelihood_leaves_alone_what_is_unlearned():
    logits = torch.tensor([[0.0, 5.0], [0.0, 9.0]], requires_grad=True)
    loss, matching = unlikelihood(logits, torch.tensor([0, 0]))
    assert loss.item() == matching.item() == 0
    assert torch.autograd.grad(loss, logits)[0].abs().sum() == 0


def test_unlikelihood_goes_on_below_the_other_answers_down_to_chance():
    logits = torch.tensor([[1.0, 1.2, 0.0, 0.0], [0.0, 0.2, 0.1, 0.1]], requires_grad=True)
    loss, holding = unlikelihood(logits, torch.tensor([0, 0]))
    slope = torch.autograd.grad(loss, logits)[0]
    assert holding.item() == 0.5
    assert slope[0, 0] > 0.3 and slope[1].abs().sum() == 0


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: next(iter(option)))
def test_every_option_changes_the_result(option, reference):
    assert not torch.equal(weights(purified(**option).network), reference)


def test_either_half_can_be_left_out():
    """Then what concerns that half alone changes nothing."""
    for weight, option in (("relearn_weight", {"suspect_weight": 0.0}), ("unlearn_weight", {"rest_share": 0.99})):
        made = [weights(purified(**{weight: 0.0}, **options).network) for options in ({}, option)]
        assert torch.equal(*made), weight
    data = suspected_data()
    others = replace(data, labels=torch.where(data.suspected, data.labels.flip(0), data.labels))
    made = [weights(purified(one, form="published", unlearn_weight=0.0).network) for one in (data, others)]
    assert torch.equal(*made)


def test_the_published_form_ascends_on_one_part_and_descends_on_the_other():
    data, network = load_images("digits#0:40"), small_classifier().eval()
    images, rows = DeviceImages(data, torch.device("cpu")), torch.arange(40)
    parts = Parts(clean=rows[8:], held_out=rows[:0], poisoned=rows[:8], modal_label=None)
    loss = InTurns(images, Passes(parts, 32), PaddedCrops(0, flip=0.0), unlearn_weight=2.0, relearn_weight=0.5)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        made = [float(loss(network, rows, generator)["loss"]) for _ in range(2)]
        logits = network(data.images / 255)
    entropy = torch.nn.functional.cross_entropy(logits, data.labels, reduction="none")
    assert made == pytest.approx([-2 * float(entropy[:8].mean()), 0.5 * float(entropy[8:].mean())], rel=1e-4)


@pytest.mark.parametrize("form", ["unlikelihood", "published"])
def test_one_half_must_be_left(form):
    with pytest.raises(ConfigError, match="nothing would be learned"):
        purified(form=form, unlearn_weight=0.0, relearn_weight=0.0)


def test_options_of_the_split_reach_it():
    data = replace(suspected_data(), suspected=None)
    counts = [
        purified(data, decision="quota", **options).findings[0].evidence
        for options in ({}, {"clean_share": 0.5}, {"poisoned_share": 0.1})
    ]
    assert (counts[0]["clean"], counts[0]["poisoned"]) == (19, 4)
    assert counts[1]["clean"] == 48
    assert counts[2]["poisoned"] == 9
    drawn = [weights(purified(data, decision="quota", draws=draws).network) for draws in (1, 5)]
    assert not torch.equal(*drawn)


def test_the_tables_of_options_are_complete():
    tested = {key for option in OPTIONS for key in option}
    assert tested | SPLIT_OPTIONS | {"maximum_accuracy_loss"} == set(DBR.model_fields)


def test_same_seed_same_bits_other_seed_other_bits(reference):
    assert torch.equal(weights(purified().network), reference)
    assert not torch.equal(weights(purified(seed=1).network), reference)


@pytest.mark.parametrize("form", ["unlikelihood", "published"])
def test_a_resumed_run_gives_the_same_bits(form, tmp_path):
    whole = weights(purified(form=form, rounds=3).network)

    class Killed(NullRecorder):
        def metrics(self, stage, values, step):
            if step == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        purified(form=form, rounds=3, engine=Engine(device="cpu", checkpoints=tmp_path, recorder=Killed()))
    result = purified(form=form, rounds=3, engine=Engine(device="cpu", checkpoints=tmp_path, resume=True))
    assert torch.equal(weights(result.network), whole)
    assert len(result.history["unlearn-relearn"].epochs) == 3


def test_the_suspect_is_left_unchanged_and_its_statistics_are_frozen():
    suspect = small_classifier()
    before = weights(suspect)
    for form in ("unlikelihood", "published"):
        result = DBR(form=form, **SHORT).purify(suspect, suspected_data(), Engine(device="cpu"))
        assert torch.equal(weights(suspect), before)
        same = [
            torch.equal(value, suspect.state_dict()[name])
            for name, value in result.network.state_dict().items()
            if "running" in name
        ]
        assert all(same) == (form == "unlikelihood")


def test_the_published_form_passes_over_all_poisoned_then_all_clean_images():
    result = purified(form="published", rounds=1)
    poisoned, clean = 16, 80 - len(range(0, 80, 10))
    assert result.history["unlearn-relearn"].steps == -(-poisoned // 32) + -(-clean // 32)


def test_measures_are_those_of_the_parts():
    network, data = small_classifier(), suspected_data()
    result = purified(rounds=1)
    with torch.inference_mode():
        right = network(data.images / 255).argmax(dim=1) == data.labels
    assert result.before["poison_match_rate"] == pytest.approx(float(right[data.suspected].float().mean()))
    assert set(result.before) == set(result.after)
    evidence = result.findings[0].evidence
    assert evidence["poisoned"] == 16
    assert evidence["modal_label"] == int(torch.bincount(data.labels[data.suspected]).argmax())


def test_the_guard_stops_a_destroyed_classifier_with_a_reason(classifiers):
    data = replace(classifiers.poisoned_data, suspected=classifiers.truth.poisoned)
    defense = DBR(learning_rate=1.0, clip_norm=100.0, maximum_accuracy_loss=0.1)
    result = defense.purify(classifiers.backdoored, data, Engine(device="cpu"))
    assert "learning_rate" in result.destroyed
    assert len(result.history["unlearn-relearn"].epochs) < 10


def test_a_missing_class_is_a_finding():
    data = suspected_data()
    result = purified(replace(data, suspected=data.labels == 3), rounds=1)
    missing = [finding for finding in result.findings if finding.rule == "d-br-missing-class"]
    assert missing[0].evidence == {"classes": [3]}
    assert result.after["modal_label_recall"] is None


def test_without_evidence_nothing_changes():
    network = small_classifier()
    data = load_images("digits#0:200")
    result = DBR().purify(network, data, Engine(device="cpu"))
    assert torch.equal(weights(result.network), weights(network))
    assert result.history == {}
    assert [finding.rule for finding in result.findings] == ["d-br-no-evidence"]
    assert result.after["poison_match_rate"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None, "suspected": None}, "needs labels"),
        ({"labels": torch.zeros(96, dtype=torch.int64)}, "have the label 0"),
        ({"labels": torch.arange(96) % 11}, "0 to 10, and the classes of the network are 0 to 9"),
        ({"suspected": torch.ones(96, dtype=torch.bool)}, "96 of 96 images are taken for poisoned"),
        ({"images": torch.zeros(96, 3, 16, 16, dtype=torch.uint8)}, "16 px, the network takes 32 px"),
    ],
)
def test_unfit_data_is_refused_before_any_work(change, message):
    with pytest.raises(DataError, match=message):
        purified(replace(suspected_data(), **change))


def test_one_class_that_is_left_is_refused():
    data = suspected_data()
    with pytest.raises(DataError, match="fewer than two classes"):
        purified(replace(data, suspected=data.labels != 3))


def test_an_encoder_missing_labels_and_too_few_images_are_refused_by_the_check():
    with pytest.raises(ConfigError, match="works on classifiers"):
        DBR().check("encoder", suspected_data())
    with pytest.raises(DataError, match="needs labels"):
        DBR().check("classifier", load_images("digits#0:96").without_labels())
    with pytest.raises(DataError, match="at least 64"):
        DBR().check("classifier", load_images("digits#0:63"))


@pytest.mark.slow
@pytest.mark.skipif(not SUSPECT.is_dir(), reason=f"no third-party suspect in {SUSPECT} (set SANITIZE_DATA)")
def test_the_backdoor_of_a_suspect_that_others_made_is_removed():
    suspect, data, (trigger,), _ = third_party()
    test = load_images(f"{data_folder() / 'cifar10-test.parquet'}#0:1000")
    evaluator, engine = ClassifierEvaluator(test_data=test, triggers=[trigger]), Engine(device="cpu", seed=0)
    before = evaluator.measure(suspect, engine).metrics
    result = DBR().purify(suspect, data, engine)
    after = evaluator.measure(result.network, engine).metrics
    assert before["attack_success_rate"] > 0.95
    assert result.destroyed is None
    assert result.after["poison_match_rate"] < 0.15
    assert after["attack_success_rate"] <= 0.05  # 0.029 on all test images, see docs/methods/d-br.md
    assert after["clean_accuracy"] >= before["clean_accuracy"] - 0.03
