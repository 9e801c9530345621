"""Self-supervised trainings: losses against slow references, moving averages, options, resuming, bad input."""

from __future__ import annotations

import copy
import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightly.loss import NTXentLoss
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from sanitize.data import ImageSet, load_images
from sanitize.data.views import cutmix
from sanitize.errors import ConfigError, DataError
from sanitize.suspects import Network, untrained, wrap
from sanitize.trainers import BYOL, TRAINERS, MoCoV3, SimCLR, trainer_named
from sanitize.trainers.momentum import MomentumLearner
from sanitize.trainers.ssl import SSLTrainer
from sanitize.training import Engine, NullRecorder
from sanitize.types import ModelSpec, Normalization

ROOT = Path(__file__).parents[2]
METHODS: list[type[SSLTrainer]] = [SimCLR, BYOL, MoCoV3]
QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 32, "flip": 0.0, "min_crop_scale": 0.5, "learning_rate": 0.05}
SMALL_HEADS: dict[str, Any] = {"hidden": 32, "dimensions": 16}


def method_id(method: type[SSLTrainer]) -> str:
    return method.name


def quick(method: type[SSLTrainer], **options: Any) -> SSLTrainer:
    heads = {} if method is SimCLR else SMALL_HEADS
    return method(**(QUICK | heads | options))


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return load_images("digits#0:96", image_size=16)


def encoder(seed: int = 0, architecture: str = "small-cnn") -> Network:
    return untrained(architecture, kind="encoder", image_size=16, normalization="half", seed=seed)


def transformer() -> Network:
    torch.manual_seed(0)
    backbone = VisionTransformer(16, 4, num_layers=1, num_heads=2, hidden_dim=32, mlp_dim=64)
    backbone.heads = nn.Identity()
    spec = ModelSpec(
        kind="encoder",
        architecture="own.py:make",
        normalization=Normalization.named("half"),
        image_size=16,
        output_size=32,
    )
    return wrap(backbone, spec)


def weights(network: nn.Module) -> Tensor:
    return torch.cat([value.flatten().double() for value in network.state_dict().values()])


def trained(trainer: SSLTrainer, data: ImageSet, *, seed: int = 0, **options: Any) -> Tensor:
    network = encoder()
    trainer.train(network, data, Engine(device="cpu", seed=seed), **options)
    return weights(network)


def vectors(seed: int, count: int = 5, size: int = 4) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def cosine(one: Tensor, other: Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


class Recording(NullRecorder):
    """Raises when an epoch is reported, before its checkpoint is written."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at

    def metrics(self, stage, values, step) -> None:
        if step == self.stop_at:
            raise KeyboardInterrupt


# ---------------------------------------------------------------------------------------------------------- losses


class Given(nn.Module):
    """A learner that gives back what it is told, whatever the images."""

    def __init__(self, *outputs: Tensor) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, *views: Any) -> Any:
        return self.outputs[0] if len(self.outputs) == 1 else self.outputs


def loss_of(trainer: SSLTrainer, learner: nn.Module, seed: int = 0) -> float:
    views = torch.rand(2, 5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return trainer.loss(learner, views[0], views[1], torch.Generator().manual_seed(seed))["loss"].item()


def test_simclr_minimises_nt_xent():
    one, other = vectors(0), vectors(1)
    both = torch.cat([one, other])
    total = 0.0
    for anchor in range(10):
        terms = {k: math.exp(cosine(both[anchor], both[k]) / 0.3) for k in range(10) if k != anchor}
        total -= math.log(terms[(anchor + 5) % 10] / sum(terms.values()))
    found = loss_of(SimCLR(temperature=0.3), Given(both))
    assert found == pytest.approx(total / 10, rel=1e-5)
    assert found == NTXentLoss(temperature=0.3)(one, other).item()


def test_byol_minimises_the_mean_negative_cosine_of_both_directions():
    outputs = [vectors(seed) for seed in range(4)]
    crossed = [cosine(outputs[0][i], outputs[3][i]) + cosine(outputs[1][i], outputs[2][i]) for i in range(5)]
    assert loss_of(BYOL(), Given(*outputs)) == pytest.approx(-sum(crossed) / 10, rel=1e-5)


def slow_contrast(queries: Tensor, keys: Tensor, temperature: float, label: int, index: int) -> float:
    terms = [math.exp(cosine(queries[index], key) / temperature) for key in keys]
    return -math.log(terms[label] / sum(terms))


def test_moco_v3_minimises_twice_the_temperature_times_both_contrasts():
    outputs = [vectors(seed) for seed in range(4)]
    total = sum(
        slow_contrast(outputs[0], outputs[3], 0.2, i, i) + slow_contrast(outputs[1], outputs[2], 0.2, i, i)
        for i in range(5)
    )
    assert loss_of(MoCoV3(), Given(*outputs)) == pytest.approx(2 * 0.2 * total / 5, rel=1e-5)


@pytest.mark.parametrize("seed", [0, 3])
def test_mixed_losses_equal_slow_loops(seed):
    """The labels are mixed as the images are: one draw for the first view, one for the second."""
    generator = torch.Generator().manual_seed(seed)
    blank = torch.zeros(5, 3, 16, 16)
    first, second = cutmix(blank, generator)[1:], cutmix(blank, generator)[1:]
    outputs = [vectors(number) for number in range(4)]
    byol = moco = simclr = 0.0
    for predictions, targets, (partner, weight) in ((outputs[0], outputs[3], first), (outputs[1], outputs[2], second)):
        for i in range(5):
            own, other = cosine(predictions[i], targets[i]), cosine(predictions[i], targets[partner[i]])
            byol -= (weight * own + (1 - weight) * other) / 10
            moco += 0.4 / 5 * weight * slow_contrast(predictions, targets, 0.2, i, i)
            moco += 0.4 / 5 * (1 - weight) * slow_contrast(predictions, targets, 0.2, int(partner[i]), i)
    for i in range(5):
        partner, weight = first
        simclr += weight * slow_contrast(outputs[0], outputs[1], 0.5, i, i) / 5
        simclr += (1 - weight) * slow_contrast(outputs[0], outputs[1], 0.5, int(partner[i]), i) / 5
    assert loss_of(BYOL(cutmix=True), Given(*outputs), seed) == pytest.approx(byol, rel=1e-5)
    assert loss_of(MoCoV3(cutmix=True), Given(*outputs), seed) == pytest.approx(moco, rel=1e-5)
    assert loss_of(SimCLR(cutmix=True), Given(torch.cat(outputs[:2])), seed) == pytest.approx(simclr, rel=1e-5)


# --------------------------------------------------------------------------------------------- online and target


def momentum_learner(momentum: float = 0.9, steps: int = 11) -> MomentumLearner:
    torch.manual_seed(1)
    network = encoder()
    return MomentumLearner(network, nn.Linear(128, 8), nn.Linear(8, 8), momentum=momentum, steps=steps)


def shifted(learner: MomentumLearner) -> tuple[list[Tensor], list[Tensor]]:
    """Copies of the target's and the online network's parameters, the latter moved."""
    online = [*learner.encoder.parameters(), *learner.projector.parameters()]
    with torch.no_grad():
        for parameter in online:
            parameter.add_(torch.randn(parameter.shape))
    return [value.clone() for value in learner.target.parameters()], [value.clone() for value in online]


def test_the_target_moves_to_m_old_plus_one_minus_m_new():
    learner = momentum_learner(momentum=0.9)
    for step, momentum in ((0, 0.9), (5, 0.95), (10, 1.0)):
        old, new = shifted(learner)
        learner.steps = step
        learner.follow()
        assert learner.momentum == pytest.approx(momentum)
        for target, before, online in zip(learner.target.parameters(), old, new, strict=True):
            torch.testing.assert_close(target, momentum * before + (1 - momentum) * online, atol=1e-6, rtol=1e-6)


def test_a_step_moves_the_target_and_an_evaluation_does_not():
    learner = momentum_learner()
    views = (torch.rand(4, 3, 16, 16), torch.rand(4, 3, 16, 16))
    old, _ = shifted(learner)
    learner.eval()(views, views)
    assert all(torch.equal(*pair) for pair in zip(learner.target.parameters(), old, strict=True))
    learner.train()(views, views)
    assert not any(torch.equal(*pair) for pair in zip(learner.target.parameters(), old, strict=True))


def test_the_target_starts_as_a_copy_and_gets_no_gradient():
    learner = momentum_learner().eval()
    views = (torch.rand(4, 3, 16, 16), torch.rand(4, 3, 16, 16))
    outputs = learner(views, views)
    torch.testing.assert_close(outputs[2], learner.projector(learner.encoder(views[0])))
    assert not outputs[2].requires_grad and not outputs[3].requires_grad
    sum(output.sum() for output in outputs).backward()
    assert all(parameter.grad is None for parameter in learner.target.parameters())
    assert all(parameter.grad is not None for parameter in learner.encoder.parameters())


@pytest.mark.parametrize("method", [BYOL, MoCoV3], ids=method_id)
def test_only_the_online_network_sees_mixed_views(method):
    class Seeing(Given):
        def forward(self, seen: Any, kept: Any) -> Any:
            self.seen, self.kept = seen, kept
            return self.outputs

    learner = Seeing(*(vectors(seed) for seed in range(4)))
    views = torch.rand(2, 5, 3, 16, 16)
    method(cutmix=True).loss(learner, views[0], views[1], torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    assert all(torch.equal(learner.seen[number], cutmix(views[number], generator)[0]) for number in (0, 1))
    assert all(torch.equal(learner.kept[number], views[number]) for number in (0, 1))


def test_moco_v3_leaves_a_transformers_patch_embedding_and_gives_it_a_deeper_projector(images):
    def linears(module: nn.Module) -> int:
        return sum(isinstance(layer, nn.Linear) for layer in module.modules())

    network, trainer = transformer(), quick(MoCoV3, optimizer="adamw", learning_rate=1e-3, weight_decay=0.1)
    before = copy.deepcopy(network.state_dict())
    trainer.train(network, images, Engine(device="cpu"))
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if "conv_proj" not in key}
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert [linears(head) for head in trainer.heads(network)] == [3, 2]
    assert [linears(head) for head in trainer.heads(encoder())] == [2, 2]


# --------------------------------------------------------------------------------------- training as a whole


@pytest.mark.parametrize(
    "trainer",
    [
        quick(SimCLR, knn_every=2, epochs=3),
        quick(BYOL, optimizer="lars", cutmix=True, epochs=3),
        quick(MoCoV3, optimizer="adamw", learning_rate=1e-3, blur=(0.5, 0.1), epochs=3),
    ],
    ids=lambda trainer: trainer.name,
)
def test_a_resumed_training_ends_in_the_same_bits(tmp_path, trainer, images):
    def run(folder: str, **options: Any) -> tuple[Tensor, Any]:
        network = encoder()
        engine = Engine(device="cpu", checkpoints=tmp_path / folder, **options)
        result = trainer.train(network, images, engine, monitor=(images, images))
        return weights(network), result.history[trainer.name]

    whole, expected = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("parts", recorder=Recording(stop_at=1))
    torch.manual_seed(99)
    resumed, history = run("parts", resume=True)
    assert torch.equal(whole, resumed)
    assert history.epochs == expected.epochs
    assert history.steps == expected.steps == 9


def test_dropout_is_resumed_to_the_same_bits_too(tmp_path, images):
    file = tmp_path / "own.py"
    file.write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )

    def run(folder: str, **options: Any) -> Tensor:
        network = encoder(architecture=f"{file}:make")
        quick(SimCLR).train(network, images, Engine(device="cpu", checkpoints=tmp_path / folder, **options))
        return weights(network)

    whole = run("whole")
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        run("parts", recorder=Recording(stop_at=1))
    assert torch.equal(before, torch.random.get_rng_state())  # the caller's generator is left alone
    assert torch.equal(whole, run("parts", resume=True))
    assert not torch.equal(whole, run("other", seed=1))


@pytest.mark.parametrize("method", METHODS, ids=method_id)
def test_the_seed_decides_everything_and_labels_nothing(method, images):
    first = trained(quick(method, epochs=1), images, seed=1)
    torch.manual_seed(99)
    assert torch.equal(first, trained(quick(method, epochs=1), images.without_labels(), seed=1))
    assert not torch.equal(first, trained(quick(method, epochs=1), images, seed=2))


COMMON = {
    "epochs": 1,
    "batch_size": 24,
    "optimizer": "lars",
    "learning_rate": 0.1,
    "momentum": 0.5,
    "weight_decay": 0.1,
    "warmup_epochs": 0,
    "min_crop_scale": 0.9,
    "jitter": 0.1,
    "grey": 1.0,
    "flip": 0.5,
    "blur": (0.0, 1.0),
    "solarise": (1.0, 0.0),
    "cutmix": True,
}
OF_ONE = [
    (SimCLR, "temperature", 0.1),
    (SimCLR, "dimensions", 8),
    (BYOL, "hidden", 16),
    (BYOL, "dimensions", 8),
    (BYOL, "ema", 0.5),
    (MoCoV3, "temperature", 1.0),
    (MoCoV3, "hidden", 16),
    (MoCoV3, "dimensions", 8),
    (MoCoV3, "ema", 0.5),
]


@functools.cache
def coloured() -> ImageSet:
    grey = load_images("digits#0:96", image_size=16).images
    return ImageSet(images=(grey * torch.tensor([1.0, 0.6, 0.3]).view(3, 1, 1)).to(torch.uint8))


@functools.cache
def trained_by_default(method: type[SSLTrainer]) -> Tensor:
    return trained(quick(method), coloured())


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        pytest.param(*row, id=f"{row[0].name}-{row[1]}")
        for row in (*((SimCLR, *pair) for pair in COMMON.items()), *OF_ONE)
    ],
)
def test_every_option_changes_the_result(method, option, value):
    assert not torch.equal(trained_by_default(method), trained(quick(method, **{option: value}), coloured()))


def test_every_option_is_among_those():
    for method in METHODS:
        own = {option for cls, option, _ in OF_ONE if cls is method}
        assert set(method.model_fields) == {*COMMON, *own, "knn_every"}


def test_the_monitor_looks_every_few_epochs_and_at_the_end_and_changes_nothing(images):
    network, test = encoder(), load_images("digits#1400:1500", image_size=16)
    trainer = quick(SimCLR, epochs=5, knn_every=2)
    result = trainer.train(network, images, Engine(device="cpu"), monitor=(images, test))
    epochs = result.history["simclr"].epochs
    assert [number for number, values in enumerate(epochs) if "knn_accuracy" in values] == [1, 3, 4]
    assert result.metrics["knn_accuracy"] == epochs[4]["knn_accuracy"] > 0.1
    assert torch.equal(weights(network), trained(trainer, images))


def test_lars_leaves_biases_and_norms_undecayed():
    optimizer = SimCLR(optimizer="lars", weight_decay=0.01)._optimizer(encoder().parameters())
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    assert {parameter.ndim for parameter in optimizer.param_groups[1]["params"]} == {1}
    assert {parameter.ndim for parameter in optimizer.param_groups[0]["params"]} == {4}


def test_channels_last_changes_the_format_and_hardly_the_result(images):
    results = []
    for channels_last in (False, True):
        network = encoder()
        engine = Engine(device="cpu", channels_last=channels_last)
        results.append(quick(SimCLR, epochs=1).train(network, images, engine).history["simclr"].epochs[0]["loss"])
        kernel = network.backbone.features[4].weight
        assert kernel.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert results[0] == pytest.approx(results[1], rel=1e-4)


@pytest.mark.parametrize("method", METHODS, ids=method_id)
def test_bf16_is_used_and_gives_nearly_the_same(method, images):
    losses, results = [], []
    for precision in ("32-true", "bf16-mixed"):
        network = encoder()
        engine = Engine(device="cpu", precision=precision)
        losses.append(quick(method, epochs=1).train(network, images, engine).history[method.name].epochs[0]["loss"])
        results.append(weights(network))
    assert losses[0] == pytest.approx(losses[1], rel=0.02, abs=0.02)
    assert not torch.equal(*results)


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("method", METHODS, ids=method_id)
@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ({"batch_size": 1}, "batch_size=1"),
        ({"optimizer": "sdg"}, "optimizer='sdg'"),
        ({"learning_rate": 0}, "learning_rate=0"),
        ({"min_crop_scale": 0.0}, "min_crop_scale=0.0"),
        ({"blur": (0.5, 1.5)}, "blur.1=1.5"),
        ({"solarise": 0.5}, "solarise=0.5"),
        ({"epoch": 3}, "Did you mean epochs"),
    ],
    ids=lambda value: str(value),
)
def test_bad_options_are_refused(method, option, reason):
    with pytest.raises(ConfigError, match=reason):
        method(**option)


def test_what_does_not_fit_is_refused_before_any_work(images):
    engine = Engine(device="cpu")
    with pytest.raises(DataError, match="96 images of digits#0:96 do not fill one batch of 512"):
        SimCLR().train(encoder(), images, engine)
    with pytest.raises(DataError, match="16 px, the network 32 px"):
        quick(BYOL).train(untrained("small-cnn", kind="encoder", image_size=32), images, engine)
    with pytest.raises(ConfigError, match="trains encoders, and this is a classifier"):
        quick(MoCoV3).train(untrained("small-cnn", kind="classifier", image_size=16, classes=10), images, engine)
    with pytest.raises(DataError, match="kNN monitor of simclr needs labels"):
        quick(SimCLR).train(encoder(), images, engine, monitor=(images, images.without_labels()))


def test_names():
    assert {method.name for method in METHODS} <= set(TRAINERS)
    assert trainer_named("moco-v3") is MoCoV3
    with pytest.raises(ConfigError, match="Did you mean simclr"):
        trainer_named("simcrl")


# --------------------------------------------------------------------------------------------------- documentation


def test_the_tables_of_the_page_are_those_of_the_code():
    lines = (ROOT / "docs" / "training.md").read_text().splitlines()
    shown = {line for line in lines if line.startswith("| `")}
    base = SimCLR().parameters()
    for method in METHODS:
        for name, item in method().parameters().items():
            cells = [f"`{name}`", str(item["value"]), str(item["paper"]), item["description"]]
            row = f"| {' | '.join(cells)} |"
            alike = method is not SimCLR and item == base.get(name)
            assert alike or row in shown, f"{method.name}: {row}"
