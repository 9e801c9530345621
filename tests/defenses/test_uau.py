"""UAU beyond the table: each option changes something, an interrupted run resumes to the same bits, bad input."""

from __future__ import annotations

import pytest
import torch

from sanitize.data import DeviceImages, ImageSet
from sanitize.defenses.uau import UAU
from sanitize.defenses.uau_pool import Pool
from sanitize.errors import ConfigError, DataError, TrainingError
from sanitize.functional.changes import Patches
from sanitize.functional.collapse import Found
from sanitize.suspects import untrained
from sanitize.training import Engine, NullRecorder
from tests.encoders import defender_images as all_images
from tests.encoders import small_encoder

SHORT = {
    "rounds": 3, "search_steps": 2, "unlearn_steps": 2, "batch_size": 16, "evidence_steps": 1,
    "minimum_clean_similarity": -1.0, "minimum_collapse": -1.0, "minimum_alignment": -1.0, "starts": 2,
    "minimum_collapse_large": -1.0, "minimum_collapse_square": -1.0, "centred": False,
    "families": "perturbation", "learning_rate": 0.01, "weight_decay": 5e-4, "squares": False,
}  # fmt: skip


def defender_images() -> ImageSet:
    """As few as are allowed, for speed."""
    return all_images().subset(slice(0, 64))


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in network.state_dict().values()])


def purified(seed: int = 0, **options):
    return UAU(**SHORT | options).purify(small_encoder(), defender_images(), Engine(device="cpu", seed=seed))


@pytest.fixture(scope="module")
def reference():
    return purified()


@pytest.mark.parametrize(
    "option",
    [
        {"rounds": 2},
        {"families": "patch"},
        {"families": "blend"},
        {"starts": 3},
        {"search_steps": 3},
        {"minimum_collapse": 1.0},
        {"minimum_alignment": 1.0},
        {"crop_padding": 2},
        {"mix": 0.2},
        {"unlearn_steps": 3},
        {"batch_size": 8},
        {"pool_size": 1},
        {"bound": 0.3},
        {"directed_bound": 0.3},
        {"learning_rate": 0.02},
        {"momentum": 0.5},
        {"weight_decay": 0.1},
        {"clip_norm": 0.001},
        {"consistency_weight": 3.0},
        {"unlearn_weight": 2.0},
        {"centred": True},
    ],
    ids=lambda option: next(iter(option)),
)
def test_every_option_changes_the_result(option, reference):
    assert not torch.equal(weights(purified(**option).network), weights(reference.network))


def test_the_table_of_options_is_complete():
    tested = {
        key
        for mark in test_every_option_changes_the_result.pytestmark
        if mark.name == "parametrize"
        for option in mark.args[1]
        for key in option
    }
    elsewhere = {"minimum_clean_similarity", "evidence_steps", "layer", "squares"}
    elsewhere |= {"minimum_collapse_large", "minimum_collapse_square"}
    assert tested | elsewhere == set(UAU.model_fields)


@pytest.mark.parametrize("least", ["minimum_collapse", "minimum_collapse_large"])
def test_small_and_large_patches_have_thresholds_of_their_own(least):
    """With nothing found, nothing is known to search towards: of two rounds, one unlearns only what it may."""
    patches = {"families": "patch", "rounds": 2, "minimum_collapse": 1.0, "minimum_collapse_large": 1.0}
    neither, one = purified(**patches), purified(**patches | {least: -1.0})
    assert not torch.equal(weights(one.network), weights(neither.network))


def test_longer_searches_measure_something_else_and_change_nothing(reference):
    longer = purified(evidence_steps=3)
    assert torch.equal(weights(longer.network), weights(reference.network))
    assert longer.before["collapse_perturbation"] != reference.before["collapse_perturbation"]


def test_same_seed_same_bits_other_seed_other_bits(reference):
    again = purified()
    assert torch.equal(weights(again.network), weights(reference.network))
    assert again.after == reference.after
    assert not torch.equal(weights(purified(seed=1).network), weights(reference.network))


class Interrupted(Exception):
    pass


class Killer(NullRecorder):
    """Dies when an epoch is reported."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def metrics(self, stage, values, step):
        if step == self.epoch:
            raise Interrupted


@pytest.mark.parametrize("epoch", [1, 8])  # before and after the pool is full
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, epoch):
    method = UAU(**SHORT | {"rounds": 10, "families": "all", "search_steps": 1, "unlearn_steps": 1, "batch_size": 8})
    suspect, data = small_encoder(), defender_images()
    whole = method.purify(suspect, data, Engine(device="cpu"))
    with pytest.raises(Interrupted):
        method.purify(suspect, data, Engine(device="cpu", checkpoints=tmp_path, recorder=Killer(epoch)))
    torch.manual_seed(99)  # the global generator must not matter
    resumed = method.purify(suspect, data, Engine(device="cpu", checkpoints=tmp_path, resume=True))
    assert torch.equal(weights(resumed.network), weights(whole.network))
    assert resumed.history["unlearn"].epochs == whole.history["unlearn"].epochs
    assert resumed.before == whole.before
    assert resumed.after == whole.after


def test_the_suspect_is_left_unchanged():
    suspect = small_encoder()
    before = weights(suspect)
    UAU(**SHORT).purify(suspect, defender_images(), Engine(device="cpu"))
    assert torch.equal(weights(suspect), before)
    assert all(parameter.grad is None for parameter in suspect.parameters())


def test_families_take_turns():
    """A run of perturbations alone repeats the first round of all, and not the second."""
    both, perturbation, patch = (
        [epoch["collapse"] for epoch in purified(families=families, rounds=2).history["unlearn"].epochs]
        for families in ("all", "perturbation", "patch")
    )
    assert both[0] == perturbation[0] != patch[0]
    assert both[1] != perturbation[1]


def test_measures_and_pictures_are_there(reference):
    for measures in (reference.before, reference.after):
        assert set(measures) == {"collapse_perturbation", "collapse_patch", "clean_similarity"}
        assert all(-1 <= value <= 1 for value in measures.values())
    names = {f"{name}-{when}" for name in ("perturbation", "patch") for when in ("before", "after")}
    assert set(reference.pictures) == names
    for picture in reference.pictures.values():
        assert picture.shape == (3, 32, 32)
        assert 0 <= float(picture.min()) <= float(picture.max()) <= 1
    always = {"loss", "consistency", "restoration", "collapse", "clean_similarity"}
    assert [set(epoch) - always for epoch in reference.history["unlearn"].epochs] == [set(), {"alignment"}, set()]
    assert all(always <= set(epoch) for epoch in reference.history["unlearn"].epochs)


def test_a_square_that_collapses_features_is_handed_out_to_the_end():
    images = DeviceImages(defender_images().without_labels(), torch.device("cpu"))
    suspect, clean = small_encoder(), torch.full((16, 3, 32, 32), 0.5)
    centre = Engine(device="cpu").forward(suspect, images.pixels, len(images)).mean(dim=0)
    direction = torch.eye(len(centre))[2]
    white = Patches(torch.full((1, 3, 6, 6), 12.0), torch.tensor([[20, 3]]), 32)
    expected = clean.clone()
    expected[:, :, 20:26, 3:9] = 1.0
    for collapse, counts in ((0.8, True), (0.7, False)):
        method = UAU(**SHORT | {"minimum_collapse_square": 0.75})
        pool = Pool(method, suspect, images, 32, centre, Found(white, collapse, direction), Engine(device="cpu"))
        drawn = [pool.changed(clean, torch.Generator().manual_seed(seed)) for seed in range(20)]
        laid = [bool(torch.allclose(changed, expected, atol=1e-4)) for changed in drawn]
        elsewhere = [int((changed > 0.9).sum()) == 16 * 3 * 36 for changed in drawn]
        assert (any(laid), all(elsewhere)) == (counts, counts)
        assert counts or all(torch.equal(changed, clean) for changed in drawn)
        directions = pool.state_dict()["directions"]
        assert torch.equal(directions, direction[None]) if counts else len(directions) == 0


@pytest.mark.parametrize(("patch", "square", "nothing"), [(0.2, 0.7, True), (0.2, 0.8, False), (0.6, 0.7, False)])
def test_of_squares_only_what_is_unlearned_is_a_find(patch, square, nothing):
    change = Patches(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2), 8)
    found = {"patch": Found(change, patch, torch.ones(1)), "square": Found(change, square, torch.ones(1))}
    rules = [finding.rule for finding in UAU(minimum_collapse=0.6, minimum_collapse_square=0.75)._findings(found, {})]
    assert rules == (["uau-nothing-found"] if nothing else [])


@pytest.mark.parametrize(
    ("before", "after", "centred", "rules", "hint"),
    [
        (0.9, 0.8, False, ["uau-still-collapses"], "centred=true"),
        (0.9, 0.8, True, ["uau-still-collapses"], "centred=false"),
        (0.9, 0.6, False, [], None),
        (0.7, 0.8, False, ["uau-nothing-found"], None),  # in the suspect
    ],
)
def test_what_collapses_as_before_is_told(before, after, centred, rules, hint):
    change = Patches(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2), 8)
    found, left = ({"patch": Found(change, value, torch.ones(1))} for value in (before, after))
    findings = UAU(minimum_collapse=0.75, centred=centred)._findings(found, left)
    assert [finding.rule for finding in findings] == rules
    if hint:
        assert hint in findings[0].message and "0.80 by a patch" in findings[0].message
        assert findings[0].evidence == {"patch": after}


def test_squares_are_searched_before_and_after(reference):
    """And disturb no other search: where no square counts, the result is the same."""
    result = purified(squares=True, minimum_collapse=1.0, minimum_collapse_square=1.0, batch_size=16)
    without = purified(minimum_collapse=1.0)
    for measures, others in ((result.before, without.before), (result.after, without.after)):
        assert -1 <= measures.pop("collapse_square") < 1
        assert measures == others
    assert set(result.pictures) - set(reference.pictures) == {"square-before", "square-after"}
    assert torch.equal(weights(result.network), weights(without.network))


def test_the_suspect_itself_is_searched_every_other_time():
    """What is found in the suspect does not depend on what was unlearned since."""
    first, second = (
        [epoch["collapse"] for epoch in purified(learning_rate=rate).history["unlearn"].epochs]
        for rate in (0.01, 0.001)
    )
    assert (first[0], first[2]) == (second[0], second[2])
    assert first[1] != second[1]


def test_the_guard_stops_a_destroyed_network_with_a_reason():
    result = purified(learning_rate=1.0, clip_norm=1e6, minimum_clean_similarity=0.95, rounds=20)
    assert result.destroyed is not None
    assert "learning_rate" in result.destroyed
    assert len(result.history["unlearn"].epochs) < 20


def classifier():
    return untrained("small-cnn", kind="classifier", image_size=32, normalization="half", classes=10)


def test_what_collapses_little_is_left_alone():
    """With a threshold that nothing reaches, only clean images are shown, and their features stay where they are."""
    left_alone = purified(minimum_collapse=1.0, weight_decay=0.0)
    assert left_alone.after["clean_similarity"] > purified().after["clean_similarity"]
    assert left_alone.after["clean_similarity"] > 0.999


def test_a_classifier_is_examined_at_its_logits_or_before_its_head():
    suspect = classifier()
    results = {
        layer: UAU(**SHORT, layer=layer).purify(suspect, defender_images(), Engine(device="cpu")).network
        for layer in ("output", "features", "auto")
    }
    before = suspect.state_dict()
    changed = {
        layer: {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
        for layer, network in results.items()
    }
    head = {"backbone.fc.weight", "backbone.fc.bias"}
    assert head <= set(before)
    assert changed["output"] & head
    assert not changed["features"] & head
    assert changed["features"] == changed["auto"]
    shape = results["features"](torch.rand(2, 3, 32, 32)).shape
    assert shape == (2, 10)


class Noise(torch.nn.Module):
    """Features that any change of the image throws anywhere: nothing makes them collapse."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(16))

    def forward(self, images):
        place = torch.arange(1.0, images[0].numel() + 1)
        phase = 1e4 * (images.flatten(1) * place.sin()).sum(dim=1, keepdim=True)
        return self.scale * torch.sin(phase * torch.arange(1.0, 17))


def test_a_search_that_finds_nothing_is_a_result_and_a_finding():
    suspect = small_encoder()
    suspect.backbone = Noise()
    result = UAU(**SHORT | {"minimum_collapse": 0.75}).purify(suspect, defender_images(), Engine(device="cpu"))
    assert max(result.before["collapse_perturbation"], result.before["collapse_patch"]) < 0.5
    assert [finding.rule for finding in result.findings] == ["uau-nothing-found"]
    assert result.findings[0].evidence == {
        name: value for name, value in result.before.items() if name != "clean_similarity"
    }


def test_too_few_images():
    data = defender_images()
    with pytest.raises(DataError, match="at least 64"):
        UAU().check("encoder", ImageSet(images=data.images[:63]))


def test_no_data():
    with pytest.raises(DataError, match="--data"):
        UAU().check("encoder", None)


def test_constant_features_are_refused():
    suspect = small_encoder()
    for parameter in suspect.parameters():
        parameter.data.zero_()
    with pytest.raises(DataError, match="constant"):
        UAU(**SHORT).purify(suspect, defender_images(), Engine(device="cpu"))


def test_a_network_that_gives_nan_for_changed_images_is_an_error():
    class Sick(torch.nn.Module):
        """Real images of digits have only 17 levels of grey."""

        def __init__(self, healthy):
            super().__init__()
            self.healthy, self.clean = healthy, None

        def forward(self, images):
            if self.clean is None:
                self.clean = images.flatten(1).mean(dim=1)
            known = torch.isin(images.flatten(1).mean(dim=1), self.clean)
            return self.healthy(images).where(known[:, None], float("nan"))

    suspect = small_encoder()
    suspect.backbone = Sick(suspect.backbone)
    with pytest.raises(TrainingError, match="NaN twice"):
        UAU(**SHORT).purify(suspect, defender_images(), Engine(device="cpu"))


def test_an_unknown_family_is_refused():
    with pytest.raises(ConfigError, match="families"):
        UAU(families="warp")
