"""What tests/test_processes.py does with one process and with several; as a script, it is one of several.

Learning rates are small, so that the order of sums does not grow into differences of its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LinearLR
from typer.testing import CliRunner

from sanitize.cli import app
from sanitize.data import DeviceImages, ImageSet, PatchTrigger, load_images
from sanitize.defenses import BMAIU, DBR, NAD, UAU, Distill, FineTune, NeuralCleanse, Purifier, SSLCleanse
from sanitize.detection import FCT, PatchSearch, PoisonCAM
from sanitize.detection.poison_classifier import PoisonClassifier
from sanitize.suspects import Network, untrained
from sanitize.trainers import BYOL, DST, Decoupled, MoCoV3, SimCLR, Supervised, Trainer
from sanitize.training import Engine, Watch
from tests.trained import WEIGHTS

FLIP = {"flip": 0.0}


def flat(network: nn.Module) -> Tensor:
    return torch.cat([value.flatten().double().cpu() for value in network.state_dict().values()])


def encoder() -> Network:
    return untrained("small-cnn", kind="encoder", image_size=32, normalization="half", seed=1)


def classifier() -> Network:
    return untrained("small-cnn", kind="classifier", image_size=32, normalization="half", classes=10, seed=1)


def images() -> ImageSet:
    return load_images("digits#0:100")


def forward(engine: Engine) -> Tensor:
    """Seven batches, the last of 16, with a trigger whose places are drawn batch by batch."""
    data, generator = DeviceImages(load_images("digits#0:400"), engine.device), engine.generator("places")
    trigger = PatchTrigger(patch=torch.ones(3, 4, 4), mode="replace", position="random", name="white")
    shown = engine.forward(
        classifier(), lambda rows: trigger.apply(data.pixels(rows), generator), len(data), batch_size=64
    )
    return torch.cat([shown.flatten(), engine.forward(encoder(), data.pixels, 5, batch_size=64).flatten()])


def train(trainer: Trainer, network: Network, engine: Engine) -> Tensor:
    trainer.train(network, images(), engine)
    return flat(network)


def simclr(engine: Engine) -> Tensor:
    return train(SimCLR(epochs=2, batch_size=25, learning_rate=0.001, **FLIP), encoder(), engine)


def simclr_cutmix(engine: Engine) -> Tensor:
    return train(SimCLR(epochs=1, batch_size=25, learning_rate=0.01, cutmix=True, **FLIP), encoder(), engine)


def simclr_in_double(engine: Engine) -> Tensor:
    """Without the rounding of single precision, but for the loss."""
    processes = engine.processes.count
    return simclr(Engine(device="cpu", devices=processes, seed=3, precision="64-true"))


def byol(engine: Engine) -> Tensor:
    trainer = BYOL(epochs=2, batch_size=25, learning_rate=0.001, hidden=32, dimensions=16, **FLIP)
    return train(trainer, encoder(), engine)


def moco(engine: Engine) -> Tensor:
    trainer = MoCoV3(epochs=2, batch_size=25, learning_rate=0.01, hidden=32, dimensions=16, **FLIP)
    return train(trainer, encoder(), engine)


def supervised(engine: Engine) -> Tensor:
    return train(Supervised(epochs=2, batch_size=25, learning_rate=0.01, **FLIP), classifier(), engine)


def decoupled(engine: Engine) -> Tensor:
    ssl = {"epochs": 1, "batch_size": 25, "learning_rate": 0.01}
    trainer = Decoupled(
        ssl_settings=ssl, classifier_epochs=2, epochs=2, batch_size=9, steps=3, learning_rate=1e-5, **FLIP
    )
    return train(trainer, classifier(), engine)


def d_st(engine: Engine) -> Tensor:
    rates = {"split_learning_rate": 0.001, "learning_rate": 0.001, "classifier_learning_rate": 0.01}
    trainer = DST(
        epochs=1, batch_size=25, classifier_epochs=1, classifier_batch_size=9, split_epochs=1, **rates, **FLIP
    )
    return train(trainer, classifier(), engine)


def fine_tune(engine: Engine) -> Tensor:
    return flat(FineTune(epochs=2, batch_size=25, **FLIP).purify(encoder(), images(), engine).network)


def bmaiu(engine: Engine) -> Tensor:
    """The last batch of an epoch is of 1 image and its two companions, which are 3 rows."""
    data = images().subset(torch.arange(76))
    purified = BMAIU(
        epochs=2, batch_size=25, learning_rate=0.001, clusters=2, minimum_clean_similarity=-1, freeze_batch_norm=False
    ).purify(encoder(), data, engine)
    return flat(purified.network)


def distill(engine: Engine) -> Tensor:
    return flat(
        Distill(epochs=2, batch_size=25, learning_rate=0.01, **FLIP).purify(encoder(), images(), engine).network
    )


def purified(method: Purifier, network: Network, engine: Engine, suspected: int = 0) -> Tensor:
    """What a purification changes in a suspect."""
    group = f"{network.spec.kind}s/suspect/"
    kept = {key.removeprefix(group): value for key, value in load_file(WEIGHTS).items() if key.startswith(group)}
    network.backbone.load_state_dict(kept)
    data = replace(images(), suspected=torch.arange(100) < suspected) if suspected else images()
    return flat(method.purify(network, data, engine).network) - flat(network)


def asked(engine: Engine) -> Tensor:
    """Outputs and gradients of inputs, of a batch that cannot be dealt out evenly, and of one with too few rows."""
    network = encoder().eval().requires_grad_(False)
    made = []
    for rows in (images().images[:11].float() / 255, images().images[:1].float() / 255):
        features = engine.spread(network)(rows.requires_grad_())
        loss = torch.tanh(features - features.mean(dim=1, keepdim=True)).square().sum() + features.std()
        made += [features.detach().flatten(), *(gradient.flatten() for gradient in torch.autograd.grad(loss, rows))]
    return torch.cat(made)


def uau(engine: Engine) -> Tensor:
    """Four rounds, two around the suspect and two not; everything counts as found."""
    found = {"minimum_collapse": -1.0, "minimum_alignment": -1.0}
    method = UAU(rounds=4, families="patch", search_steps=2, unlearn_steps=3, evidence_steps=1, batch_size=16, **found)
    return purified(method, encoder(), engine)


def d_br(engine: Engine) -> Tensor:
    return purified(DBR(rounds=2, **FLIP), classifier(), engine, suspected=20)


def d_br_published(engine: Engine) -> Tensor:
    return purified(DBR(form="published", rounds=2, batch_size=25, **FLIP), classifier(), engine, suspected=20)


def nad(engine: Engine) -> Tensor:
    return purified(NAD(teacher_epochs=1, epochs=1, batch_size=25, weights=(0.5, 4.0), **FLIP), classifier(), engine)


def neural_cleanse(engine: Engine) -> Tensor:
    """Everything counts as a success, so that there is something to unlearn."""
    method = NeuralCleanse(steps=9, batch_size=9, repeats=1, unlearn_epochs=1, success=1e-6, threshold=1e-6)
    return purified(method, classifier(), engine)


def ssl_cleanse(engine: Engine) -> Tensor:
    method = SSLCleanse(steps=30, batch_size=16, unlearn_epochs=1, clusters=8, success=1e-6, threshold=1e-6)
    return purified(method, encoder(), engine)


def fct(engine: Engine) -> Tensor:
    """Three batches of 512, the last of 76, whose transformations are drawn batch by batch."""
    detector = FCT(transformations=("shift", "flip", "erase"), draws=2)
    return detector.score(classifier(), load_images("digits#0:1100"), engine).values


def searched(method: type[PoisonCAM] | type[PatchSearch], engine: Engine, **options: object) -> Tensor:
    """All that a search found: five parts of 64 images, and flip tests in batches of 50 pairs."""
    small = {"flip_images": 20, "top": 5, "null_windows": 100, "clusters": 6, "batch_size": 50}
    data = load_images("digits#0:300").without_labels()
    found = method.model_validate(small | options).score(encoder(), data, engine)
    null = (found.evidence.score_null, found.evidence.agreement_null)
    parts = (found.values, found.corners, found.flips, found.clusters, found.top, found.maps, *null)
    return torch.cat([part.flatten().double() for part in parts])


def poisoncam(engine: Engine) -> Tensor:
    return searched(PoisonCAM, engine, mask_stride=16)


def poisoncam_iterative(engine: Engine) -> Tensor:
    return searched(PoisonCAM, engine, mask_stride=16, search="iterative")


def patchsearch(engine: Engine) -> Tensor:
    return searched(PatchSearch, engine, flip_images=7)


def poison_classifier(engine: Engine) -> Tensor:
    """The last step of a search, which trains."""
    settings = PoisonClassifier(
        architecture="small-cnn",
        networks=1,
        iterations=8,
        batch_size=9,
        forward_batch=64,
        jitter=0.2,
        grey=0.0,
        flip=0.5,
    )
    data = images()
    windows, rows = data.images[:5, :, :9, :9].contiguous(), torch.arange(len(data))
    return settings.classify(data, windows, rows[30:], (rows[:5], rows[20:30]), engine)


class Tiny(nn.Module):
    """Batch norm without a first momentum and without weights, and dropout if asked for."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.Sequential(
            nn.Linear(4, 8),
            nn.BatchNorm1d(8, momentum=None),
            nn.Dropout(dropout),
            nn.Linear(8, 8),
            nn.BatchNorm1d(8, affine=False, track_running_stats=False),
            nn.Linear(8, 1),
        )
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, rows: Tensor) -> Tensor:
        return self.layers(rows)


class Mean:
    """A companion that looks at the network before each epoch."""

    value = 0.0

    def before_epoch(self, network: nn.Module, generator: torch.Generator) -> dict[str, float]:
        self.value = float(network(ROWS).detach().mean()) + float(torch.rand(1, generator=generator))
        return {"mean": self.value}

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.value = state["value"]


ROWS = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))


def tiny(engine: Engine, *, dropout: float = 0.0, watch: Watch = lambda _: ({}, None)) -> Tensor:
    """Batches of 16, the last one of 2; whoever looks across a batch, clips, follows a schedule, is watched."""
    made, companion = Tiny(dropout), Mean()

    def loss(module: nn.Module, rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        noisy = ROWS[rows] + 0.1 * torch.randn(len(rows), 4, generator=generator)
        values = torch.tanh(module(noisy)[:, 0] - companion.value)
        return {"loss": torch.cdist(values[:, None], values[:, None]).mean() + values.square().mean()}

    history = engine.fit(
        "tiny",
        made,
        loss,
        images=len(ROWS),
        batch_size=16,
        epochs=3,
        clip_norm=0.5,
        optimizer=lambda parameters: SGD(parameters, lr=0.02, momentum=0.9),
        scheduler=lambda optimizer, steps: LinearLR(optimizer, 1.0, 0.1, total_iters=steps),
        companion=companion,
        watch=watch,
    )
    return torch.cat([flat(made), torch.tensor([value for epoch in history.epochs for value in epoch.values()])])


def dropout(engine: Engine) -> Tensor:
    return tiny(engine, dropout=0.5)


TRAININGS = (tiny, dropout, simclr, simclr_in_double, byol, supervised, decoupled, d_st, fine_tune, bmaiu, distill)
PURIFICATIONS = (asked, uau, d_br, d_br_published, nad, neural_cleanse, ssl_cleanse)
SEARCHES = (fct, poisoncam, poisoncam_iterative, patchsearch, poison_classifier)
SCENES: dict[int, tuple[Callable[[Engine], Tensor], ...]] = {
    2: (forward, *TRAININGS, *PURIFICATIONS, *SEARCHES),
    3: (forward, tiny, simclr_in_double, bmaiu, asked, uau, d_br, nad, fct, poisoncam),
}
"""By the number of processes."""


class Interrupted(Exception):
    pass


def resumed(folder: Path, count: int) -> Tensor:
    """As `tiny`, but interrupted in the second epoch; only the first process has the checkpoints."""
    left = [1]

    def interrupt(_: nn.Module) -> tuple[dict[str, float], None]:
        if not left:
            raise Interrupted
        left.pop()
        return {}, None

    with suppress(Interrupted):
        tiny(Engine(device="cpu", devices=count, seed=3, checkpoints=folder), watch=interrupt)
    return tiny(Engine(device="cpu", devices=count, seed=3, checkpoints=folder, resume=True))


def publish(folder: Path, rank: int) -> None:
    """A whole job by its command: train, search, register, and train on what is left, which is a job in the job."""
    done = CliRunner().invoke(
        app,
        ["dataset", "digits#0:200", "--method", "fct", "--set", "decision=quota", "--set", "draws=1", "--arch",
         "small-cnn", "--normalization", "half", "--train-set", "epochs=1", "--register", "rest", "--retrain",
         "--register-model", "mine", "--retrain-set", "epochs=1", "--workdir", str(folder / "work"), "--format",
         "json", "--quiet", "--devices", "2"],
    )  # fmt: skip
    (folder / f"{rank}.json").write_text(json.dumps([done.exit_code, done.stdout]))


def fail(count: int) -> None:
    """The second process fails."""
    engine = Engine(device="cpu", devices=count)

    def full(_: nn.Module) -> tuple[dict[str, float], None]:
        if engine.processes.rank == 1:
            raise ValueError("the disk is full")
        return {}, None

    with engine.processes.guarded():
        tiny(engine, watch=full)


def main(folder: Path, count: int) -> None:
    """All scenes of so many processes, what each process has in the end, a job of two, and then an error."""
    engine = Engine(device="cpu", devices=count, seed=3)
    with engine.processes.guarded():
        made = {scene.__name__: scene(engine) for scene in SCENES[count]}
        made["resumed"] = resumed(folder, count)
    torch.save(made, folder / f"{engine.processes.rank}.pt")
    if count == 2:
        publish(folder, engine.processes.rank)
    fail(count)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
