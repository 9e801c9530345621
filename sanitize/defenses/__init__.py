"""All defences by name; a defence is one file and one line here."""

from sanitize.defenses.base import Defense, Need, Paper, Purified, Purifier
from sanitize.defenses.bmaiu import BMAIU
from sanitize.errors import ConfigError
from sanitize.types import did_you_mean

DEFENSES: dict[str, type[Defense]] = {defense.name: defense for defense in (BMAIU,)}


def defense_named(name: str) -> type[Defense]:
    """The class of a defence.

    Raises:
        ConfigError: The name is unknown.
    """
    if name not in DEFENSES:
        raise ConfigError(f"unknown method {name!r}. {did_you_mean(name, DEFENSES)}")
    return DEFENSES[name]


__all__ = ["BMAIU", "DEFENSES", "Defense", "Need", "Paper", "Purified", "Purifier", "defense_named"]
