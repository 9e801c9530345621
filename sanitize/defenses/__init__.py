"""All defences by name; a defence is one file and one line here."""

from sanitize.defenses.base import Defense, Need, Paper, Purified, Purifier
from sanitize.defenses.bmaiu import BMAIU
from sanitize.defenses.clp import CLP
from sanitize.defenses.d_br import DBR
from sanitize.defenses.distill import Distill
from sanitize.defenses.fine_tune import FineTune
from sanitize.defenses.i_bau import IBAU
from sanitize.defenses.nad import NAD
from sanitize.defenses.neural_cleanse import NeuralCleanse
from sanitize.defenses.ssl_cleanse import SSLCleanse
from sanitize.defenses.uau import UAU
from sanitize.errors import ConfigError
from sanitize.types import did_you_mean

DEFENSES: dict[str, type[Defense]] = {
    defense.name: defense for defense in (BMAIU, CLP, DBR, Distill, FineTune, IBAU, NAD, NeuralCleanse, SSLCleanse, UAU)
}


def defense_named(name: str) -> type[Defense]:
    """The class of a defence.

    Raises:
        ConfigError: The name is unknown.
    """
    if name not in DEFENSES:
        raise ConfigError(f"unknown method {name!r}. {did_you_mean(name, DEFENSES)}")
    return DEFENSES[name]


__all__ = [
    "BMAIU",
    "CLP",
    "DBR",
    "DEFENSES",
    "IBAU",
    "NAD",
    "UAU",
    "Defense",
    "Distill",
    "FineTune",
    "Need",
    "NeuralCleanse",
    "Paper",
    "Purified",
    "Purifier",
    "SSLCleanse",
    "defense_named",
]
