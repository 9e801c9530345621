"""Does the bound of a drill hold for triggers that no drill draws, of its own families and of others?

    python -m benchmarks.drill_families FOLDER --method fine-tune --set learning_rate=0.1 --count 3

FOLDER is where `sanitize demo` or the tests keep the suspect of digits (``suspect.pth``); it is made when it is empty.
Each trigger is planted in a copy of the suspect and purified, with data and halves as in a drill of `sanitize encoder`
on that model. Own family: a white corner, which no drill draws. Others: WaNet's warp, SIG's sine wave.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from sanitize.canaries import plant
from sanitize.data import PatchTrigger, Trigger, load_images
from sanitize.data.triggers import WarpTrigger, sinusoid
from sanitize.defenses import Purifier
from sanitize.demonstration import Demonstration
from sanitize.evaluation import EncoderEvaluator
from sanitize.evaluation.removal import CanaryOutcome, DrillResult
from sanitize.recipes import configure
from sanitize.suspects import untrained
from sanitize.training import Engine

SIDE = 32
FAMILIES = ("white corner", "warp", "sine")


def trigger_of(family: str, number: int, target: int) -> Trigger:
    """The `number`-th trigger of a held-out family."""
    if family == "white corner":
        side = 4 + number % 5
        return PatchTrigger(torch.ones(3, side, side), position="bottom-right", target=target, name="white-corner")
    if family == "warp":
        return WarpTrigger(grid_size=4, strength=2.0, seed=number, target=target)
    wave = sinusoid(SIDE, 40 / 255, 4.0 + number)
    return PatchTrigger(wave, mode="add", position=(0, 0), target=target, name="sine")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--method", default="fine-tune")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--count", type=int, default=3, help="triggers a family")
    parser.add_argument("--family", action="append", choices=FAMILIES, help="all when left out; repeatable")
    parser.add_argument("--attempt", type=int, default=1, help="how long is planted; see `sanitize.canaries.plant`")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not (options.folder / "suspect.pth").is_file():
        Demonstration().train(options.folder, Engine(seed=0))
    suspect = untrained("small-cnn", kind="encoder", image_size=SIDE, normalization="half", seed=0)
    suspect.backbone.load_state_dict(torch.load(options.folder / "suspect.pth", weights_only=True)["state_dict"])
    suspect.eval()
    defense = configure(options.method, settings=options.settings)
    assert isinstance(defense, Purifier)
    data, probe, test = load_images("digits#0:420"), load_images("digits#0:600"), load_images("digits#1400:")
    halves = torch.randperm(len(test), generator=Engine(seed=options.seed).generator("halves")).chunk(2)
    planting, held_out = (test.subset(rows) for rows in halves)
    for family in options.family or FAMILIES:
        outcomes = []
        for number in range(options.count):
            engine = Engine(seed=options.seed + number)
            target = int(torch.randint(10, (1,), generator=engine.generator(f"target/{family}")))
            trigger = trigger_of(family, number, target)
            evaluator = EncoderEvaluator(probe_data=probe, test_data=held_out, triggers=[trigger])
            planted = plant(suspect, planting, trigger, target, engine, attempt=options.attempt)
            before = evaluator.measure(planted, engine).metrics["attack_success_rate"]
            after = evaluator.measure(defense.purify(planted, data, engine).network, engine).metrics
            outcome = CanaryOutcome(
                family=family,
                trigger=trigger.name,
                target=target,
                attempts=1,
                taken=before is not None and before >= 0.5,
                planted_success_rate=before,
                success_rate=after["attack_success_rate"],
                base_rate=after["base_rate"],
            )
            print(f"{family}: {before:.3f} to {outcome.success_rate:.3f}, {outcome.outcome}", flush=True)
            outcomes.append(outcome)
        print(DrillResult(tuple(outcomes)).statement, flush=True)


if __name__ == "__main__":
    main()
