"""``ptycho calibrate``: what the data say of their own geometry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ptycho.cli.arguments import ScanShape, SemiangleMrad, Settings, StepA, Threads, VoltageKV, numbers, quoted, recipe_for, settings_of, tell_next
from ptycho.cli.new import ask

if TYPE_CHECKING:
    from ptycho.answers import Calibration
    from ptycho.data import Dataset4D


def calibrate(
    source: Annotated[str, typer.Argument(metavar="RECIPE|FILE", help="A recipe.toml or a 4D-STEM file.")],
    write: Annotated[bool, typer.Option("--write", help="Put the answers into the recipe (FILE: a new recipe.toml here).")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="TOML", help="Write them to this recipe instead.")] = None,
    picture: Annotated[Path | None, typer.Option("--picture", metavar="PNG", help="Tilt-corrected bright field, twice as fine.")] = None,
    set_: Settings = None,
    threads: Threads = 0,
    voltage_kV: VoltageKV = None,
    semiangle_mrad: SemiangleMrad = None,
    scan_shape: ScanShape = None,
    step_A: StepA = None,
) -> None:
    """Centre, disk, pixel size, flips and rotation, defocus and astigmatism from the data: ranked, with what they cannot tell."""
    import torch

    from ptycho.calibration import calibrate as run

    given = {
        "microscope.voltage_kV": voltage_kV, "microscope.semiangle_mrad": semiangle_mrad,
        "scan.shape": numbers(scan_shape, "--scan-shape"), "scan.step_A": numbers(step_A, "--step-A"),
    }  # fmt: skip
    settings = settings_of(given, set_)
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
        _write(_recipe_text(source, settings, target), found, data, target)
        tell_next(f"ptycho reconstruct {quoted(target)}")
    else:
        tell_next(f"the same with --write puts this into {quoted(source) if source.endswith('.toml') else 'a new recipe.toml'}")


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


def _recipe_text(source: str, settings: list[str], target: Path) -> str:
    """The recipe as it is, or a new one that reads the file from where it will lie, with what the command line said."""
    from ptycho.recipe_new import new_recipe, path_from
    from ptycho.recipe_update import with_given
    from ptycho.settings import given_tree

    if source.endswith(".toml"):
        return with_given(Path(source).read_text(encoding="utf-8"), given_tree(settings))
    data, tree, known = ask(source, settings)
    return new_recipe(data, path_from(target.absolute().parent, source), tree, known).text


def _write(text: str, found: Calibration, data: Dataset4D, target: Path) -> None:
    from ptycho.atomic import write_file
    from ptycho.recipe_update import with_answers

    flips = {name: bool(getattr(data.preparation, name)) for name in ("transpose", "flip_rows", "flip_columns")}
    write_file(target, with_answers(text, found, flips).encode())
    typer.echo(f"recipe: {target}")


def _draw(data: Dataset4D, picture: Path) -> None:
    from ptycho.atomic import write_file
    from ptycho.plot_parallax import parallax_png
    from ptycho.tilt_corrected import parallax

    write_file(picture, parallax_png(parallax(data), data.name))
    typer.echo(f"picture: {picture}")
