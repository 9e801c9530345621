"""Recipes: YAML files with a method's settings for a data scale. They ship with the package as `recipes/`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar, overload

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from sanitize.defenses import Defense, defense_named
from sanitize.errors import ConfigError
from sanitize.method import Method
from sanitize.types import did_you_mean

AnyMethod = TypeVar("AnyMethod", bound=Method)


class Recipe(BaseModel):
    """One recipe.

    Args:
        method: Name of the defence, detector, training or attack.
        summary: What data scale it is for, in a sentence.
        parameters: Hyperparameters, by the method's names.
        reasons: Why a parameter differs from the paper's, by parameter.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    summary: str
    parameters: dict[str, Any]
    reasons: dict[str, str] = {}

    @model_validator(mode="after")
    def _reasons_are_about_parameters(self) -> Self:
        if stray := sorted(set(self.reasons) - set(self.parameters)):
            raise ValueError(f"reasons for {', '.join(stray)}, which the recipe does not set")
        return self


@dataclass(frozen=True)
class Setting:
    """One parameter as a recipe leaves it.

    Args:
        name: Of the parameter.
        value: That the method runs with.
        paper: The paper's value, or what the paper says of it; the default where the two are the same.
        chosen: Whether the recipe sets it; else it is the method's default.
        reason: Why it differs from the paper's; empty where the recipe says nothing.
    """

    name: str
    value: Any
    paper: Any
    chosen: bool
    reason: str

    @property
    def differs(self) -> bool:
        """Whether it is another value than the paper's."""
        return bool(self.value != self.paper)


def folder() -> Path:
    """Where the shipped recipes are: inside the installed package, or at the top of a checkout."""
    installed = Path(__file__).parent / "_recipes"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "recipes"


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in folder().glob("*.yaml"))


def load_recipe(name: str) -> Recipe:
    """Read a recipe by name, or from a path that ends in ``.yaml``.

    Raises:
        ConfigError: No such recipe, not YAML, or an unknown key.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder() / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"no recipe {name!r}. {did_you_mean(name, recipe_names())}")
    try:
        return Recipe.model_validate(yaml.safe_load(path.read_text()))
    except (ValidationError, yaml.YAMLError, UnicodeDecodeError) as error:
        detail = (
            "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
            if isinstance(error, ValidationError)
            else str(error)
        )
        raise ConfigError(f"recipe {path}: {detail}") from error


def settings_of(recipe: Recipe) -> list[Setting]:
    """All parameters of the recipe's method, beside the paper's values.

    Raises:
        ConfigError: The method or a parameter is unknown, or a value is out of range.

    Example:
        >>> [(item.name, item.value, item.paper) for item in settings_of(load_recipe("nad")) if item.differs][1]
        ('learning_rate', 0.01, 0.1)
    """
    made = _method(recipe.method)(**recipe.parameters)
    return [
        Setting(name, item["value"], item["paper"], name in recipe.parameters, recipe.reasons.get(name, ""))
        for name, item in made.parameters().items()
    ]


def command_of(recipe: Recipe, name: str) -> str:
    """The command that takes a recipe, with what else it has to be given in capitals."""
    from sanitize.attacks import ATTACKS
    from sanitize.detection import DETECTORS
    from sanitize.detection.catalogue import MODEL_DETECTORS
    from sanitize.trainers import TRAINERS

    if recipe.method in ATTACKS:
        return f"sanitize attack {recipe.method} --data DATA --recipe {name}"
    if recipe.method in DETECTORS:
        return f"sanitize dataset DATA --recipe {name}"
    if recipe.method in MODEL_DETECTORS:
        return f"sanitize scan MODEL --reference MODEL --recipe {name}"
    if recipe.method in TRAINERS:
        return f"sanitize train DATA --register NAME --arch NAME --normalization NAME --image-size PX --recipe {name}"
    kind = "encoder" if "encoder" in defense_named(recipe.method).kinds else "classifier"
    return f"sanitize {kind} MODEL --recipe {name}"


def _method(name: str) -> type[Method]:
    from sanitize.attacks import ATTACKS
    from sanitize.defenses import DEFENSES
    from sanitize.detection import DETECTORS
    from sanitize.detection.catalogue import MODEL_DETECTORS
    from sanitize.trainers import TRAINERS

    known: dict[str, type[Method]] = {**DEFENSES, **DETECTORS, **MODEL_DETECTORS, **TRAINERS, **ATTACKS}
    if name not in known:
        raise ConfigError(f"unknown method {name!r}. {did_you_mean(name, known)}")
    return known[name]


@overload
def configure(method: str | None, *, recipe: str | None = None, settings: Sequence[str] = ()) -> Defense: ...


@overload
def configure(
    method: str | None,
    *,
    recipe: str | None = None,
    settings: Sequence[str] = (),
    named: Callable[[str], type[AnyMethod]],
    option: str = "--set",
) -> AnyMethod: ...


def configure(
    method: str | None,
    *,
    recipe: str | None = None,
    settings: Sequence[str] = (),
    named: Callable[[str], type[Method]] = defense_named,
    option: str = "--set",
) -> Method:
    """Make a method from its name, a recipe and ``key=value`` settings, the last one winning.

    Args:
        method: Its name; that of the recipe when left out.
        recipe: Name or path of a recipe.
        settings: ``key=value``; the value is read as YAML.
        named: Finds the class by its name: that of a defence when left out, else `sanitize.trainers.trainer_named` or
            `sanitize.attacks.attack_named`.
        option: What the settings are called on the command line, for messages.

    Raises:
        ConfigError: Unknown method, recipe or key, a value out of range, or a recipe for another method.

    Example:
        >>> configure("bmaiu", settings=["epochs=1"]).epochs
        1
    """
    values: dict[str, Any] = {}
    if recipe is not None:
        loaded = load_recipe(recipe)
        if method is not None and method != loaded.method:
            raise ConfigError(f"recipe {recipe!r} is for {loaded.method}, and the method asked for is {method}.")
        method, values = loaded.method, dict(loaded.parameters)
    if method is None:
        raise ConfigError("name a method with --method, or a recipe with --recipe.")
    return named(method)(**values | _parsed(settings, option))


def _parsed(settings: Sequence[str], option: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"{option} {setting!r}: write key=value, for example {option} epochs=5.")
        try:
            values[key.strip()] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{option} {setting!r}: {text!r} is not a value ({error}).") from error
    return values
