"""`sanitize recipes`: settings for data scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from sanitize.cli import options

if TYPE_CHECKING:
    from sanitize.recipes import Setting


def recipes(context: typer.Context) -> None:
    """List the recipes: settings of a method for a data scale. `sanitize recipes show NAME` explains one."""
    from rich.console import Console
    from rich.table import Column, Table

    from sanitize.recipes import load_recipe, recipe_names

    if context.invoked_subcommand:
        return
    table = Table(Column("recipe", no_wrap=True), Column("method", no_wrap=True), "for", title="Recipes")
    for name in recipe_names():
        recipe = load_recipe(name)
        table.add_row(name, recipe.method, recipe.summary)
    Console().print(table)


def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a recipe, or your own file.yaml.")],
    verbose: options.Verbose = False,
) -> None:
    """Show what a recipe sets, the paper's values beside it, and why they differ."""
    from rich.console import Console

    from sanitize.recipes import command_of, load_recipe, settings_of

    recipe = load_recipe(name)
    settings = settings_of(recipe)
    console = Console()
    console.print(f"{name}: {recipe.method}, for {recipe.summary}", markup=False, highlight=False)
    console.print(_table([item for item in settings if item.chosen], "set by the recipe", reasons=True))
    if others := [item for item in settings if item.differs and not item.chosen]:
        console.print(_table(others, "left at defaults that are not the paper's", reasons=False))
        console.print("The method's page in the documentation says why.")
    console.print(f"Use it: {command_of(recipe, name)}", markup=False, highlight=False, soft_wrap=True)


def _table(settings: Sequence[Setting], title: str, *, reasons: bool) -> object:
    from rich.markup import escape
    from rich.table import Table

    table = Table("parameter", "ours", "paper", *(("why they differ",) if reasons else ()), title=title)
    for item in settings:
        row = [item.name, str(item.value), str(item.paper), *((item.reason,) if reasons else ())]
        table.add_row(*map(escape, row))
    return table
