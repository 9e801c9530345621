"""Recipes and settings: all shipped ones are valid, and wrong keys are named."""

from __future__ import annotations

import pytest

from sanitize.defenses import DEFENSES
from sanitize.errors import ConfigError
from sanitize.recipes import configure, load_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_configures_its_method(name):
    recipe = load_recipe(name)
    defense = configure(None, recipe=name)
    for key, value in recipe.parameters.items():
        assert getattr(defense, key) == value
    assert set(recipe.reasons) <= set(recipe.parameters)


@pytest.mark.parametrize("method", sorted(DEFENSES))
def test_every_method_has_a_recipe(method):
    assert method in {load_recipe(name).method for name in recipe_names()}


def test_settings_win_over_the_recipe():
    assert configure("bmaiu", recipe="bmaiu-cifar10", settings=["epochs=3", "anchor=f0"]).epochs == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "bmaui"}, "Did you mean bmaiu"),
        ({"method": None}, "--method"),
        ({"method": "bmaiu", "recipe": "bmaiu-cifar"}, "Did you mean bmaiu-cifar10"),
        ({"method": "bmaiu", "settings": ["epoch=3"]}, "Did you mean epochs"),
        ({"method": "bmaiu", "settings": ["epochs"]}, "key=value"),
        ({"method": "bmaiu", "settings": ["epochs=many"]}, "epochs='many'"),
        ({"method": "bmaiu", "settings": ["epochs=0"]}, "greater than or equal to 1"),
        ({"method": "bmaiu", "settings": ["anchor=f2"]}, "anchor"),
        ({"method": "bmaiu", "settings": ["epochs=[1"]}, "not a value"),
    ],
)
def test_wrong_configuration_says_what_and_what_to_do(arguments, message):
    method = arguments.pop("method")
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        configure(method, **arguments)


def test_a_recipe_with_an_unknown_key_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("method: bmaiu\nsummary: mine\nparameters: {}\nparamters: {epochs: 3}\n")
    with pytest.raises(ConfigError, match="paramters"):
        load_recipe(str(path))


def test_a_recipe_of_another_method_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("method: uau\nsummary: mine\nparameters: {}\n")
    with pytest.raises(ConfigError, match="is for uau"):
        configure("bmaiu", recipe=str(path))
