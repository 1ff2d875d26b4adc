"""What a search is: a complete recipe, what is varied of it, how short the runs are. It lies in the search's folder, for whoever joins."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ptycho.atomic import write_file
from ptycho.data import Dataset4D
from ptycho.errors import OutputError, RecipeError
from ptycho.explain import suggestion
from ptycho.recipe import Recipe
from ptycho.tune_objective import Effort
from ptycho.tune_ranges import Range, Value, check_comparable, default_ranges, own_value, parse_range, setting

#: Sections of which something may be varied.
_SECTIONS = ("microscope", "scan", "detector", "model")


@dataclass(frozen=True)
class Plan:
    """``recipe`` says all that a run uses; each of the ``ranges`` is of one of its keys. ``prune`` cuts hopeless runs short."""

    recipe: Recipe
    ranges: tuple[Range, ...]
    effort: Effort
    seed: int
    prune: bool

    @property
    def written(self) -> dict[str, Value]:
        """The recipe's own values of what is varied, of those that it does not leave open."""
        tree = tomllib.loads(self.recipe.text())
        values = {r.key: own_value(tree, r.key) for r in self.ranges}
        return {key: value for key, value in values.items() if value is not None}

    @property
    def own(self) -> dict[str, Value] | None:
        """The same; None when one is open or outside of its range: the recipe is then tried as it is."""
        known = self.written
        return known if all(r.key in known and r.holds(known[r.key]) for r in self.ranges) else None

    def text(self) -> str:
        """As JSON, beside the recipe."""
        ranges = [{**asdict(r), "choices": list(r.choices)} for r in self.ranges]
        return json.dumps({"ranges": ranges, "effort": asdict(self.effort), "seed": self.seed, "prune": self.prune}, indent=1) + "\n"


def planned(recipe: Recipe, vary: Sequence[str], effort: Effort, seed: int = 0, prune: bool = True) -> Plan:
    """The search of a recipe over ``key=range`` texts, or over what suits the data when there are none.

    Raises RecipeError for a key that does not exist, cannot be varied or cannot have one of the values, and what reading the data raises.
    """
    data = recipe.read()
    geometry = data.geometry
    complete = recipe.completed(data, geometry.pixel_invA)
    if complete.detector.pixel_invA is not None:
        complete = complete.model_copy(update={"detector": complete.detector.model_copy(update={"pixel_mrad": None})})
    given = [parse_range(text) for text in vary] or list(default_ranges(geometry, recipe.model, _defocus_key(data), data.rotation_deg))
    for key in {r.key for r in given if [other.key for other in given].count(r.key) > 1}:
        raise RecipeError(f"{key}: it is varied twice; give one range")
    return Plan(complete, tuple(_checked(complete, r) for r in given), effort, seed, prune)


def _defocus_key(data: Dataset4D) -> str:
    coefficients = data.calibration["aberrations"].value if "aberrations" in data.calibration else {}
    return "microscope.aberrations.C10" if "C10" in coefficients else "microscope.defocus_A"


def _checked(recipe: Recipe, r: Range) -> Range:
    """The range, known to hold nothing but possible values; of whole numbers when others are not."""
    check_comparable(r.key)
    _check_key(recipe, r.key)
    tree = tomllib.loads(recipe.text())

    def allowed(value: Value) -> None:
        Recipe.parse(tree, [setting(r.key, value)], name="--vary")

    if not r.choices and r.low.is_integer() and r.high.is_integer():
        try:
            allowed(r.low + 0.5)
        except RecipeError:
            r = replace(r, whole=True)
    for value in r.extremes:
        allowed(value)
    return r


def _check_key(recipe: Recipe, key: str) -> None:
    """A key that is not there is told with the nearest one of all sections."""
    section, _, name = key.partition(".")
    known = [f"{part}.{field}" for part in _SECTIONS for field in _fields(recipe, part)]
    if section == "solve" and not recipe.solve:
        raise RecipeError(
            f"{key}: the recipe has no [[solve]] stage of which it could be varied; copy one from the recipe.toml that ptycho reconstruct leaves"
        )
    if section == "solve" or f"{section}.{name.split('.')[0]}" in known:
        return  # what is below is checked with the values
    namesake = [other for other in known if other.rpartition(".")[2] == key.rpartition(".")[2]]
    raise RecipeError(f'{key}: unknown key; did you mean "{namesake[0]}"?' if namesake else f"{key}: unknown key{suggestion(key, known)}")


def _fields(recipe: Recipe, section: str) -> list[str]:
    record: Any = getattr(recipe, section)
    return list(vars(record))


def keep(plan: Plan, folder: Path) -> None:
    """Put the plan into ``folder``, or see that the one that is there is the same. Raises OutputError."""
    files = {"recipe.toml": plan.recipe.text(), "tune.json": plan.text()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = [path for path in folder.iterdir() if path.name not in files and not path.name.startswith(".")]
        if others and not (folder / "tune.json").exists():
            raise OutputError(f"{folder}: the folder is not empty and holds no search; give another with -o")
        for name, text in files.items():
            if not (folder / name).exists():
                write_file(folder / name, text.encode())
            if (folder / name).read_text(encoding="utf-8") != text:
                raise OutputError(f"{folder}: another search lies here ({name} differs); give another folder with -o, or the same words as then")
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror or error}; give a folder that can be written with -o") from None


def kept(folder: Path) -> Plan:
    """The plan that lies in ``folder``. Raises OutputError when there is none, RecipeError when it is damaged."""
    try:
        tree = json.loads((folder / "tune.json").read_text(encoding="utf-8"))
        ranges = tuple(Range(**{**r, "choices": tuple(r["choices"])}) for r in tree["ranges"])
        return Plan(Recipe.load(folder / "recipe.toml"), ranges, Effort(**tree["effort"]), tree["seed"], tree["prune"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{folder}: no search can be read here ({error}); begin one with ptycho tune RECIPE -o FOLDER") from None
