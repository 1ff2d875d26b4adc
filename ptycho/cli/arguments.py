"""What several verbs make of their words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from ptycho.recipe import Recipe


def recipe_for(file: str, settings: list[str]) -> Recipe:
    """The recipe of this name, or one that reads this file."""
    from ptycho.recipe import Recipe

    return Recipe.load(file, settings) if file.endswith(".toml") else Recipe.parse({"data": {"path": file}}, settings, name=file)


def reading(file: str, settings: list[str]) -> dict[str, Any]:
    """The arguments of ``ptycho.io.read`` for a recipe or a data file; torch is not needed for the file alone."""
    return recipe_for(file, settings).reading() if settings or file.endswith(".toml") else {"path": file}


def numbers(text: str | None, option: str) -> list[float] | float | None:
    """ "48,48" as [48, 48], "0.7" as 0.7; ``option`` is named when it is neither."""
    if text is None:
        return None
    try:
        values = [float(part) if "." in part or "e" in part else int(part) for part in text.replace("x", ",").split(",")]
    except ValueError:
        raise typer.BadParameter(f'"{text}": one number, or two with a comma between them, is needed', param_hint=option) from None
    return values if len(values) > 1 else values[0]
