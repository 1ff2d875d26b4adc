"""``ptycho export`` and ``ptycho import``: to and from the other packages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ptycho.cli.arguments import quoted, tell_next

if TYPE_CHECKING:
    from ptycho.exchange.imported import Imported

_NAMES = "emd, hspy, imagej, ome, cxi, fold_slice, npz, npy, ptyrad, py4dstem, phaser"


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or its result.h5.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write; its end says the format: .emd, .hspy, .tif, .ome.tif, .cxi, ...")],
    to: Annotated[str | None, typer.Option("--to", metavar="FORMAT", help=f"One of {_NAMES}.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if there is one.")] = False,
) -> None:
    """Write a result as a file of another program, with its axes, units and signs."""
    import logging

    from ptycho.account import warnings_kept
    from ptycho.errors import OutputError
    from ptycho.exchange import export as write
    from ptycho.io.result_file import load_result

    if target.exists() and not overwrite:
        raise OutputError(f"{target}: it is there already; give another name, or --overwrite")
    with warnings_kept(logging.getLogger("ptycho")) as warnings:
        path = write(load_result(run), target, to)
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def import_(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="Parameters or a result of PtyRAD, phaser, py4DSTEM or fold_slice.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for recipe.toml and result.h5.")] = Path("imported"),
    force: Annotated[bool, typer.Option("--force", help="Replace what is there already.")] = False,
) -> None:
    """Turn parameters and results of another program into a recipe and a result of this one."""
    from ptycho.errors import OutputError
    from ptycho.exchange import import_run

    imported = import_run(source)
    taken = [output / name for name in ("recipe.toml", "result.h5", "positions.csv") if (output / name).exists()]
    if taken and not force:
        raise OutputError(f"{taken[0]}: it is there already; give another folder with -o, or --force to replace it")
    _write(imported, output)
    for warning in imported.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if imported.recipe is not None:
        typer.echo(f"recipe: {output / 'recipe.toml'}")
    if imported.result is not None:
        typer.echo(f"result: {output / 'result.h5'}")
        tell_next(f"ptycho report {quoted(output)}")
    else:
        tell_next(f"ptycho check {quoted(output / 'recipe.toml')}")


def _write(imported: Imported, folder: Path) -> None:
    """The recipe, if it is one that can be read, then the result and its positions."""
    import tomllib

    from ptycho.atomic import make_folder, write_file
    from ptycho.io.result_file import save_result
    from ptycho.recipe import Recipe

    make_folder(folder)
    if imported.recipe is not None:
        # A source without a data file leaves that line to be filled in; everything else has to be right already.
        tree = tomllib.loads(imported.recipe)
        tree["data"] = {"path": "scan", **tree.get("data", {})}
        Recipe.parse(tree, name=str(folder / "recipe.toml"))
        write_file(folder / "recipe.toml", imported.recipe.encode())
    if imported.result is not None:
        save_result(imported.result, folder)
        rows = "\n".join(f"{y:.6f},{x:.6f}" for y, x in imported.result.positions_A)
        write_file(folder / "positions.csv", f"y_A,x_A\n{rows}\n".encode())
