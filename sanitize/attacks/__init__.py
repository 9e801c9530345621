"""Known backdoors, for drills, tests and benchmarks; no defence imports from here.

An attack is one file and one line here.
"""

from sanitize.attacks.badencoder import BadEncoder
from sanitize.attacks.badnets import BadNets
from sanitize.attacks.base import Attack, EncoderAttack, Implanted, Poisoned, PoisoningAttack, Truth
from sanitize.attacks.blend import BlendKitty, BlendStrip
from sanitize.attacks.ctrl import CTRL
from sanitize.attacks.estas import ESTAS
from sanitize.attacks.label_consistent import LabelConsistent
from sanitize.attacks.multi_target_badencoder import MultiTargetBadEncoder
from sanitize.attacks.partial_collapse import PartialCollapse
from sanitize.attacks.sig import SIG
from sanitize.attacks.ssba import SSBA
from sanitize.attacks.ssl_backdoor import SSLBackdoor
from sanitize.attacks.trojan import Trojan
from sanitize.attacks.tuap import TUAP
from sanitize.attacks.wanet import WaNet
from sanitize.errors import ConfigError
from sanitize.types import did_you_mean

_ALL: tuple[type[Attack], ...] = (
    BadEncoder,
    MultiTargetBadEncoder,
    SSLBackdoor,
    CTRL,
    ESTAS,
    PartialCollapse,
    BadNets,
    Trojan,
    BlendStrip,
    BlendKitty,
    SIG,
    LabelConsistent,
    SSBA,
    WaNet,
    TUAP,
)
ATTACKS: dict[str, type[Attack]] = {attack.name: attack for attack in _ALL}


def attack_named(name: str) -> type[Attack]:
    """The class of an attack.

    Raises:
        ConfigError: The name is unknown.
    """
    if name not in ATTACKS:
        raise ConfigError(f"unknown attack {name!r}. {did_you_mean(name, ATTACKS)}")
    return ATTACKS[name]


__all__ = [
    "ATTACKS",
    "CTRL",
    "ESTAS",
    "SIG",
    "SSBA",
    "TUAP",
    "Attack",
    "BadEncoder",
    "BadNets",
    "BlendKitty",
    "BlendStrip",
    "EncoderAttack",
    "Implanted",
    "LabelConsistent",
    "MultiTargetBadEncoder",
    "PartialCollapse",
    "Poisoned",
    "PoisoningAttack",
    "SSLBackdoor",
    "Trojan",
    "Truth",
    "WaNet",
    "attack_named",
]
