"""Which runs a submission means: recipes, data files and varied values, each combination with a recipe and a folder of its own."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Sequence
from pathlib import Path

from ptycho.errors import RecipeError
from ptycho.jobfolder import plain_name
from ptycho.recipe import Recipe


def points_of(sources: Sequence[str], settings: Sequence[str], varied: Sequence[str], output: Path | None) -> tuple[Path, dict[str, Recipe]]:
    """The folder of all runs, and name -> complete recipe of each.

    ``sources`` are recipes (``.toml``) or data files; with both, each recipe reads each of the files. ``varied`` are "key=value,value,..."; all
    combinations are made. A single run goes into the folder itself, several into one each below it. Raises RecipeError.
    """
    recipes: list[str | None] = [source for source in sources if source.endswith(".toml")]
    files: list[str | None] = [source for source in sources if not source.endswith(".toml")]
    axes = [_axis(text) for text in varied]
    keys = [key for key, _ in axes]
    combinations = list(itertools.product(*([(key, value) for value in values] for key, values in axes)))
    found: list[tuple[str, Recipe]] = []
    for recipe, file in itertools.product(recipes or [None], files or [None]):
        # One recipe for all, or one file for all, tells nothing apart.
        told = [Path(part.partition("::")[0]).stem for part, group in ((recipe, recipes), (file, files)) if part is not None and len(group) > 1]
        for combination in combinations:
            loaded = _load(recipe, file, [*settings, *(f"{key}={value}" for key, value in combination)])
            values = [f"{_short(key, keys)}-{plain_name(value, '')}" for key, value in combination]
            found.append((plain_name("_".join([*told, *values])), loaded))
    folder = (output or Path(found[0][1].output.directory)).expanduser().absolute()
    if len(found) == 1:
        return folder, {plain_name(folder.name): _into(folder, found[0][1])}
    return folder, {name: _into(folder / name, recipe) for name, recipe in _unique(found).items()}


def _load(recipe: str | None, file: str | None, settings: list[str]) -> Recipe:
    """A recipe, with the file as its data if there is one."""
    # An absolute path begins like no TOML value: the setting takes all of it as text, whatever is in it.
    data = [] if file is None else [f"data.path={Path(file).expanduser().absolute()}"]
    if recipe is not None:
        return Recipe.load(Path(recipe).absolute(), [*data, *settings])
    return Recipe.parse({}, [*data, *settings], name=str(file), folder=Path.cwd())


def _into(folder: Path, recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"output": recipe.output.model_copy(update={"directory": str(folder)})})


def _axis(text: str) -> tuple[str, list[str]]:
    """ "model.slices=1,2,[3,4]" as its key and its values, each a TOML value or plain text."""
    key, equals, values = text.partition("=")
    if not equals or not key.strip() or not values.strip():
        raise RecipeError(f'--vary "{text}": write it as section.key=value,value, for example model.slices=1,2,4')
    found, open_ = [], ""
    for part in values.split(","):
        open_ = f"{open_},{part}" if open_ else part
        if _is_toml(open_):
            found.append(open_.strip())
            open_ = ""
    # What is no TOML to its end is text between commas.
    return key.strip(), [part.strip() for part in values.split(",")] if open_ else found


def _is_toml(text: str) -> bool:
    try:
        tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return False
    return True


def _short(key: str, keys: list[str]) -> str:
    """The last part of a key where that says which one it is."""
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in keys) == 1 else plain_name(key)


def _unique(found: list[tuple[str, Recipe]]) -> dict[str, Recipe]:
    """Names that differ: what two have in common gets a number."""
    points: dict[str, Recipe] = {}
    for name, recipe in found:
        names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        points[next(free for free in names if free not in points)] = recipe
    return points
