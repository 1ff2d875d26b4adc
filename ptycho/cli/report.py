"""``ptycho report``: the page about a run, made again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or its result.h5.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Default: report.html in the folder.")] = None,
) -> None:
    """Write report.html of a finished run: pictures, quality, fit, calibration, warnings, recipe; one file that needs no other."""
    from ptycho.atomic import write_file
    from ptycho.report import report_of

    text = report_of(run)
    target = output or (run if run.is_dir() else run.parent) / "report.html"
    write_file(target, text.encode())
    typer.echo(f"report: {target}")
