"""All ways of training a network from scratch by name; a trainer is one file and one line here."""

from sanitize.errors import ConfigError
from sanitize.trainers.base import Paper, Trained, Trainer
from sanitize.trainers.byol import BYOL
from sanitize.trainers.d_st import DST
from sanitize.trainers.decoupled import Decoupled
from sanitize.trainers.moco_v3 import MoCoV3
from sanitize.trainers.simclr import SimCLR
from sanitize.trainers.supervised import Supervised
from sanitize.types import did_you_mean

TRAINERS: dict[str, type[Trainer]] = {
    trainer.name: trainer for trainer in (Supervised, SimCLR, BYOL, MoCoV3, Decoupled, DST)
}


def trainer_named(name: str) -> type[Trainer]:
    """The class of a trainer.

    Raises:
        ConfigError: The name is unknown.
    """
    if name not in TRAINERS:
        raise ConfigError(f"unknown training {name!r}. {did_you_mean(name, TRAINERS)}")
    return TRAINERS[name]


__all__ = [
    "BYOL",
    "DST",
    "TRAINERS",
    "Decoupled",
    "MoCoV3",
    "Paper",
    "SimCLR",
    "Supervised",
    "Trained",
    "Trainer",
    "trainer_named",
]
