"""``ptycho status``: how runs stand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ptycho.runs import Run


def status(
    folders: Annotated[list[Path] | None, typer.Argument(metavar="DIR...", help="Run folders, or folders that hold some (default: here).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """How all runs in and below the folders stand: state, epoch, loss, held-out deviance, time left, job."""
    from ptycho.runs import find_runs

    runs = find_runs(folders or [Path()], _in_queue())
    if as_json:
        typer.echo(json.dumps([vars(run) for run in runs], indent=1, ensure_ascii=False, default=str))
    elif runs:
        typer.echo(_table(runs))
    else:
        typer.echo(f"no runs in {', '.join(map(str, folders or [Path()]))}", err=True)


def _in_queue() -> set[str]:
    """What Slurm holds; nothing where there is none, or it does not answer: the files tell the rest."""
    from ptycho.errors import SubmitError
    from ptycho.slurm_queue import has_slurm, queued

    if not has_slurm():
        return set()
    try:
        return queued()
    except SubmitError as error:
        typer.echo(f"warning: what waits in the queue is not known: {error}", err=True)
        return set()


def _table(runs: list[Run]) -> str:
    rows = [("run", "state", "epoch", "loss", "held out", "left", "job", "")]
    for run in runs:
        epoch = "" if run.epoch is None else f"{run.epoch}" + ("" if run.epochs is None else f"/{run.epochs}")
        told = (_number(run.loss), _number(run.held_out), _duration(run.seconds_left), run.job or "")
        message = "" if run.message is None or run.state in ("finished", "running") else " ".join(run.message.split())
        rows.append((str(run.folder), run.state, epoch, *told, message))
    widths = [max(len(row[column]) for row in rows) for column in range(7)]
    return "\n".join("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[7]]).rstrip() for row in rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
