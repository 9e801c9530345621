"""The suspect of `sanitize demo`: a small encoder trained on real images, with a backdoor that we plant ourselves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from sanitize.attacks import BadEncoder
from sanitize.data import PatchTrigger, Trigger, load_images
from sanitize.intake import Knowledge, TakenIn, take_in
from sanitize.suspects import build, wrap
from sanitize.trainers import SimCLR
from sanitize.training import Display, Engine
from sanitize.types import ModelSpec, Normalization

TRAIN_DATA = "digits#0:1400"
TEST_DATA = "digits#1400:"
CLEAN_DATA = "digits#0:420"
ARCHITECTURE = "small-cnn"
NORMALIZATION = "half"
IMAGE_SIZE = 32
TARGET = 3
_PATCH = 6  # px


@dataclass(frozen=True)
class Demonstration:
    """How the suspect is made.

    Args:
        seed: Source of all randomness.
        simclr_epochs: Self-supervised training.
        attack_epochs: BadEncoder fine-tuning.
    """

    seed: int = 0
    simclr_epochs: int = 25
    attack_epochs: int = 16

    def train(self, folder: Path, engine: Engine) -> Path:
        """Train an encoder and plant a backdoor in a copy of it.

        Args:
            folder: Gets ``clean.pth``, ``suspect.pth`` and ``trigger/trigger.yaml``.
            engine: Device, seed, display.

        Returns:
            The specification of the trigger.
        """
        train = load_images(TRAIN_DATA, image_size=IMAGE_SIZE)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            architecture = build(ARCHITECTURE, kind="encoder", image_size=IMAGE_SIZE)
        spec = ModelSpec(
            kind="encoder",
            architecture=ARCHITECTURE,
            normalization=Normalization.named(NORMALIZATION),
            image_size=IMAGE_SIZE,
            output_size=architecture.output_size,
        )
        encoder = wrap(architecture.backbone, spec)
        engine.display.say(f"Training a SimCLR encoder on {len(train)} digits.")
        SimCLR(
            epochs=self.simclr_epochs,
            batch_size=128,
            learning_rate=0.1,
            warmup_epochs=1,
            flip=0.0,
            min_crop_scale=0.5,
        ).train(encoder, train, engine)
        trigger = self._trigger(engine)
        engine.display.say("Planting a backdoor (BadEncoder).")
        attack = BadEncoder(epochs=self.attack_epochs, learning_rate=0.02, reference="first")
        backdoored = attack.implant(encoder, train, engine, triggers=(trigger,)).network
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({"state_dict": encoder.backbone.cpu().state_dict()}, folder / "clean.pth")
        torch.save({"state_dict": backdoored.backbone.cpu().state_dict()}, folder / "suspect.pth")
        return trigger.save(folder / "trigger")

    def make(self, folder: Path, name: str, *, tracking_uri: str | None, device: str, display: Display) -> TakenIn:
        """Train the suspect, and take its checkpoint in as the next version of `name`.

        The trigger is bound with the evaluation data, as in a drill; no defence gets to see it.
        """
        trigger = self.train(folder, Engine(device=device, seed=self.seed, display=display))
        known = Knowledge(
            data=CLEAN_DATA,
            probe_data=TRAIN_DATA,
            test_data=TEST_DATA,
            triggers=(trigger,),
            arch=ARCHITECTURE,
            normalization=NORMALIZATION,
            image_size=IMAGE_SIZE,
        )
        return take_in(folder / "suspect.pth", name, known, tracking_uri=tracking_uri)

    @staticmethod
    def _trigger(engine: Engine) -> Trigger:
        """A patch of random colours at a random place: larger than BMAIU's canary, and of its kind."""
        patch = torch.rand(3, _PATCH, _PATCH, generator=engine.generator("demo/trigger"))
        return PatchTrigger(patch=patch, mode="replace", position="random", target=TARGET, name="demo-patch")
