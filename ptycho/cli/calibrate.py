"""``ptycho calibrate``: what the data say of their own geometry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ptycho.cli.arguments import numbers, recipe_for

if TYPE_CHECKING:
    from ptycho.answers import Calibration
    from ptycho.data import Dataset4D

Number = float | None


def calibrate(
    source: Annotated[str, typer.Argument(metavar="RECIPE|FILE", help="A recipe.toml or a 4D-STEM file.")],
    write: Annotated[bool, typer.Option("--write", help="Put the answers into the recipe (FILE: a new recipe.toml here).")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="TOML", help="Write them to this recipe instead.")] = None,
    picture: Annotated[Path | None, typer.Option("--picture", metavar="PNG", help="Tilt-corrected bright field, twice as fine.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As in --set model.slices=4; repeatable.")] = None,
    threads: Annotated[int, typer.Option(min=0, metavar="N", show_default=False, help="CPU threads (0: all cores).")] = 0,
    voltage_kV: Annotated[Number, typer.Option("--voltage-kV", metavar="KV", help="Acceleration voltage.")] = None,
    semiangle_mrad: Annotated[Number, typer.Option("--semiangle-mrad", metavar="MRAD", help="Convergence semi-angle.")] = None,
    scan_shape: Annotated[str | None, typer.Option("--scan-shape", metavar="SLOW,FAST", help="Scan points: 48,48.")] = None,
    step_A: Annotated[str | None, typer.Option("--step-A", metavar="Å", help="Scan step, or slow,fast.")] = None,
) -> None:
    """Centre, disk, pixel size, flips and rotation, defocus and astigmatism from the data: ranked, with what they cannot tell."""
    import torch

    from ptycho.calibration import calibrate as run

    given = {
        "microscope.voltage_kV": voltage_kV, "microscope.semiangle_mrad": semiangle_mrad,
        "scan.shape": numbers(scan_shape, "--scan-shape"), "scan.step_A": numbers(step_A, "--step-A"),
    }  # fmt: skip
    settings = [f"{key}={value}" for key, value in given.items() if value is not None] + (set_ or [])
    if threads > 0:
        torch.set_num_threads(threads)
    recipe = recipe_for(source, settings)
    target = _target(source, write, output)
    data = recipe.read()
    found = run(data, recipe.model, torch.get_num_threads())
    typer.echo(f"{data.name}: {found.electrons_per_pattern:.0f} electrons per pattern, {found.dose_e_per_A2:.4g} per Å2\n\n{found}")
    if picture is not None:
        _draw(data, picture)
    if target is not None:
        text = Path(source).read_text(encoding="utf-8") if source.endswith(".toml") else _new_recipe(source, settings, target)
        _write(text, found, data, target)


def _target(source: str, write: bool, output: Path | None) -> Path | None:
    """The recipe to write, known to be writable in principle before minutes of work."""
    from ptycho.errors import OutputError

    if output is None and not write:
        return None
    target = output or (Path(source) if source.endswith(".toml") else Path("recipe.toml"))
    if target.suffix != ".toml":
        raise OutputError(f"{target}: a recipe's name ends in .toml")
    if target.exists() and target != Path(source):
        raise OutputError(f"{target}: it is there already; calibrate that recipe, or give another name with -o")
    return target


def _new_recipe(source: str, settings: list[str], target: Path) -> str:
    """A recipe that reads the file from where the recipe will lie, with the settings of the command line."""
    import os

    from ptycho.recipe import Recipe

    file, colons, dataset = source.partition("::")
    path = os.path.relpath(file, target.absolute().parent) + colons + dataset
    return Recipe.parse({"data": {"path": path}}, settings).text()


def _write(text: str, found: Calibration, data: Dataset4D, target: Path) -> None:
    from ptycho.io.files import replace_file
    from ptycho.recipe_update import with_answers

    flips = {name: bool(getattr(data.preparation, name)) for name in ("transpose", "flip_rows", "flip_columns")}
    replace_file(target, with_answers(text, found, flips).encode())
    typer.echo(f"recipe: {target}")


def _draw(data: Dataset4D, picture: Path) -> None:
    from ptycho.io.files import replace_file
    from ptycho.plot_parallax import parallax_png
    from ptycho.tilt_corrected import parallax

    replace_file(picture, parallax_png(parallax(data), data.name))
    typer.echo(f"picture: {picture}")
