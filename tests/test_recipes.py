"""Recipes and settings: all shipped ones are valid, and wrong keys are named."""

from __future__ import annotations

import pytest

from sanitize.attacks import ATTACKS, CTRL, attack_named
from sanitize.defenses import DEFENSES
from sanitize.detection import DETECTORS
from sanitize.detection.catalogue import MODEL_DETECTORS
from sanitize.errors import ConfigError
from sanitize.recipes import command_of, configure, load_recipe, recipe_names, settings_of
from sanitize.trainers import TRAINERS, SimCLR, trainer_named

METHODS = {**DEFENSES, **DETECTORS, **MODEL_DETECTORS, **TRAINERS, **ATTACKS}


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_configures_its_method(name):
    recipe = load_recipe(name)
    made = configure(None, recipe=name, named=METHODS.__getitem__)
    for key, value in recipe.parameters.items():
        assert getattr(made, key) == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize("name", recipe_names())
def test_every_choice_that_is_not_the_paper_s_has_its_reason(name):
    unexplained = [
        item.name for item in settings_of(load_recipe(name)) if item.chosen and item.differs and not item.reason
    ]
    assert unexplained == []


def test_settings_are_those_that_the_method_runs_with(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("method: nad\nsummary: mine\nparameters: {epochs: 3}\nreasons: {epochs: few images}\n")
    settings = {item.name: item for item in settings_of(load_recipe(str(path)))}
    made = configure("nad", recipe=str(path))
    assert {name: item.value for name, item in settings.items()} == made.model_dump()
    assert [name for name, item in settings.items() if item.chosen] == ["epochs"]
    assert settings["epochs"].reason == "few images"
    assert settings["learning_rate"].differs and settings["learning_rate"].paper == 0.1
    assert not settings["batch_size"].differs


@pytest.mark.parametrize("name", recipe_names())
def test_the_command_of_a_recipe_is_one(name):
    from typer.main import get_command

    from sanitize.cli import app

    command = command_of(load_recipe(name), name).split()
    parameters = get_command(app).commands[command[1]].params
    assert {word for word in command if word.startswith("--")} <= {name for item in parameters for name in item.opts}


def test_a_reason_for_what_is_not_set_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("method: nad\nsummary: mine\nparameters: {epochs: 3}\nreasons: {epoch: few images}\n")
    with pytest.raises(ConfigError, match="reasons for epoch, which"):
        load_recipe(str(path))


def test_a_recipe_of_no_method_is_not_explained(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("method: bmaui\nsummary: mine\nparameters: {}\n")
    with pytest.raises(ConfigError, match="Did you mean bmaiu"):
        settings_of(load_recipe(str(path)))


@pytest.mark.parametrize("method", sorted({**DEFENSES, **DETECTORS, **MODEL_DETECTORS, **TRAINERS}))
def test_every_method_has_a_recipe(method):
    assert method in {load_recipe(name).method for name in recipe_names()}


def test_no_two_methods_have_the_same_name():
    assert len(METHODS) == len(DEFENSES) + len(DETECTORS) + len(MODEL_DETECTORS) + len(TRAINERS) + len(ATTACKS)


def test_trainings_and_attacks_are_configured_alike():
    made = configure("simclr", recipe="simclr-small", settings=["epochs=3"], named=trainer_named)
    assert made == SimCLR(**load_recipe("simclr-small").parameters | {"epochs": 3})
    assert configure("ctrl", settings=["selection=first"], named=attack_named) == CTRL(selection="first")
    with pytest.raises(ConfigError, match="Did you mean simclr"):
        configure("simcl", named=trainer_named)
    with pytest.raises(ConfigError, match="--train-set 'epochs'"):
        configure("simclr", settings=["epochs"], named=trainer_named, option="--train-set")


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
