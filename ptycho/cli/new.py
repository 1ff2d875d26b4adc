"""``ptycho new``: a first recipe, written by asking the file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ptycho.cli.arguments import (
    AduPerElectron,
    Bin,
    DefocusA,
    FlipColumns,
    FlipRows,
    PixelInvA,
    RotationDeg,
    ScanShape,
    SemiangleMrad,
    Settings,
    StepA,
    Transpose,
    VoltageKV,
    numbers,
    opened,
    quoted,
    recipe_for,
    settings_of,
    tell_next,
)

if TYPE_CHECKING:
    from ptycho.data import Dataset4D


def new(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A 4D-STEM file; file.h5::/entry/data names a data set in it.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="TOML", help="The recipe to write.")] = Path("recipe.toml"),
    force: Annotated[bool, typer.Option("--force", help="Replace a recipe that is there already.")] = False,
    set_: Settings = None,
    voltage_kV: VoltageKV = None,
    semiangle_mrad: SemiangleMrad = None,
    defocus_A: DefocusA = None,
    scan_shape: ScanShape = None,
    step_A: StepA = None,
    rotation_deg: RotationDeg = None,
    pixel_invA: PixelInvA = None,
    adu_per_electron: AduPerElectron = None,
    flip_rows: FlipRows = None,
    flip_columns: FlipColumns = False,
    transpose: Transpose = False,
    bin_: Bin = None,
) -> None:
    """Write a commented recipe for a file: what it knows, with sources, and what it does not know as lines to fill in."""
    given = {
        "microscope.voltage_kV": voltage_kV, "microscope.semiangle_mrad": semiangle_mrad, "microscope.defocus_A": defocus_A,
        "scan.shape": numbers(scan_shape, "--scan-shape"), "scan.step_A": numbers(step_A, "--step-A"), "scan.rotation_deg": rotation_deg,
        "detector.pixel_invA": pixel_invA, "data.adu_per_electron": adu_per_electron, "data.flip_rows": flip_rows,
        "data.flip_columns": flip_columns or None, "data.transpose": transpose or None, "data.bin": bin_,
    }  # fmt: skip
    check_target(output, file, force)
    missing = write_new(file, settings_of(given, set_), output)
    typer.echo(f"recipe: {output}")
    if missing:
        typer.echo(f"The file does not know {', '.join(missing)}: fill in the lines that begin with # in {output}, or give them as options now")
        flags = " ".join(f"--{'scan-shape' if key == 'scan.shape' else key.partition('.')[2].replace('_', '-')} ..." for key in missing)
        tell_next(f"ptycho calibrate {quoted(output)} --write {flags}   (without what you have filled in)")
    else:
        tell_next(f"ptycho calibrate {quoted(output)} --write")


def check_target(target: Path, source: str, force: bool = False) -> None:
    """Raise OutputError unless a recipe for ``source`` may be written here."""
    from ptycho.errors import OutputError, RecipeError

    if source.endswith(".toml"):
        raise RecipeError(f"{source}: this is a recipe already; give a data file, or type ptycho calibrate {quoted(source)} --write")
    if target.suffix != ".toml":
        raise OutputError(f"{target}: a recipe's name ends in .toml")
    if target.exists() and not force:
        raise OutputError(f"{target}: it is there already; give another name with -o, or --force to replace it")


def write_new(source: str, settings: list[str], target: Path) -> tuple[str, ...]:
    """Write the recipe; the keys that are missing in it."""
    from ptycho.atomic import write_file
    from ptycho.recipe_new import new_recipe, path_from

    data, tree, known = ask(source, settings)
    made = new_recipe(data, path_from(target.absolute().parent, source), tree, known)
    data.close()
    write_file(target, made.text.encode())
    return made.missing


def ask(source: str, settings: list[str]) -> tuple[Dataset4D, dict[str, dict[str, object]], bool]:
    """(the data, what the settings say as a recipe's tree, whether the scan shape is known)."""
    from ptycho.errors import DataError
    from ptycho.settings import given_tree

    data, known = opened(recipe_for(source, settings).reading())
    try:
        data.survey()
    except DataError as error:  # a recipe can be written for a file without a single electron; what is wrong stands in it
        data.warnings.append(str(error))
    return data, given_tree(settings), known
