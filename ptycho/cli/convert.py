"""``ptycho convert``: any readable data set as one HDF5 file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ptycho.cli.arguments import Settings, reading


def convert(
    source: Annotated[str, typer.Argument(metavar="FILE|RECIPE", help="Any data set that can be read.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.h5", help="The file to write: EMD 1.0, an HDF5 that other programs read.")],
    set_: Settings = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.h5 if there is one.")] = False,
) -> None:
    """Write a data set as a chunked, compressed, calibrated HDF5 file: in electrons, turned, cropped and binned as asked for."""
    import sys

    from tqdm import tqdm

    from ptycho.errors import OutputError
    from ptycho.io import read
    from ptycho.io.convert import convert as write

    if target.exists() and not overwrite:
        raise OutputError(f"{target}: it is there already; give another name, or --overwrite")
    data = read(**reading(source, set_ or []))
    with tqdm(total=data.n_positions, unit="patterns", disable=not sys.stderr.isatty(), leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.update(done - bar.n)

        write(data, target, show)
    for warning in data.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"{target}: {data.n_positions} patterns of {data.pattern_shape[0]} x {data.pattern_shape[1]}, {target.stat().st_size / 1e6:.1f} MB")
