"""`sanitize recipes`: settings for data scales."""

from __future__ import annotations


def recipes() -> None:
    """List the recipes: settings of a method for a data scale."""
    from rich.console import Console
    from rich.table import Table

    from sanitize.recipes import load_recipe, recipe_names

    table = Table("recipe", "method", "for", "settings", title="Recipes")
    for name in recipe_names():
        recipe = load_recipe(name)
        settings = ", ".join(f"{key}={value}" for key, value in recipe.parameters.items())
        table.add_row(name, recipe.method, recipe.summary, settings)
    Console().print(table)
