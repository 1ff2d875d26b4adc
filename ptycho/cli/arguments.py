"""Options that several verbs share, and what these make of their words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ptycho.data import Dataset4D
    from ptycho.recipe import Recipe

Number = float | None
Text = str | None

# One name, unit and sentence for an option, whichever verb has it.
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As in --set data.bin=2; repeatable.")]
Threads = Annotated[int, typer.Option("--threads", min=0, metavar="N", show_default=False, help="CPU threads (0: all cores).")]
VoltageKV = Annotated[Number, typer.Option("--voltage-kV", metavar="KV", help="Acceleration voltage.")]
SemiangleMrad = Annotated[Number, typer.Option("--semiangle-mrad", metavar="MRAD", help="Convergence semi-angle.")]
DefocusA = Annotated[Number, typer.Option("--defocus-A", metavar="Å", help="Positive is underfocus.")]
ScanShape = Annotated[Text, typer.Option("--scan-shape", metavar="SLOW,FAST", help="Scan points: 48,48.")]
StepA = Annotated[Text, typer.Option("--step-A", metavar="Å", help="Scan step, or slow,fast.")]
RotationDeg = Annotated[Number, typer.Option("--rotation-deg", metavar="DEG", help="Scan relative to detector.")]
PixelInvA = Annotated[Number, typer.Option("--pixel-invA", metavar="1/Å", help="Detector pixel (default: from the disk).")]
AduPerElectron = Annotated[Number, typer.Option("--adu-per-electron", metavar="ADU", help="What one electron gives.")]
FlipRows = Annotated[bool | None, typer.Option("--flip-rows/--no-flip-rows", help="Patterns upside down (EMPAD: yes).")]
FlipColumns = Annotated[bool, typer.Option("--flip-columns", help="Patterns left to right.")]
Transpose = Annotated[bool, typer.Option("--transpose", help="Swap rows and columns, before the flips.")]
Bin = Annotated[int | None, typer.Option("--bin", metavar="N", help="Sum N x N detector pixels.")]


def settings_of(given: Mapping[str, Any], more: list[str] | None = None) -> list[str]:
    """What options say, by the recipe's key, as ``--set`` would say it, and ``more`` such settings; None was not given."""
    said = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in given.items() if value is not None]
    return said + (more or [])


def recipe_for(file: str, settings: list[str]) -> Recipe:
    """The recipe of this name, or one that reads this file."""
    from ptycho.recipe import Recipe

    return Recipe.load(file, settings) if file.endswith(".toml") else Recipe.parse({"data": {"path": file}}, settings, name=file)


def reading(file: str, settings: list[str]) -> dict[str, Any]:
    """The arguments of ``ptycho.io.read`` for a recipe or a data file; torch is not needed for the file alone."""
    return recipe_for(file, settings).reading() if settings or file.endswith(".toml") else {"path": file}


def opened(arguments: dict[str, Any]) -> tuple[Dataset4D, bool]:
    """(the data that ``ptycho.io.read`` gives, False when their scan shape is not known and they are shown as one line)."""
    from ptycho.errors import ScanShapeError
    from ptycho.io import read

    try:
        return read(**arguments), True
    except ScanShapeError as error:
        data = read(**{**arguments, "scan_shape": (1, error.n_frames)})
        data.warnings.insert(0, str(error))
        return data, False


def numbers(text: str | None, option: str) -> list[float] | float | None:
    """ "48,48" as [48, 48], "0.7" as 0.7; ``option`` is named when it is neither."""
    if text is None:
        return None
    try:
        values = [float(part) if "." in part or "e" in part else int(part) for part in text.replace("x", ",").split(",")]
    except ValueError:
        raise typer.BadParameter(f'"{text}": one number, or two with a comma between them, is needed', param_hint=option) from None
    return values if len(values) > 1 else values[0]


def quoted(path: str | Path) -> str:
    """A path as a word of a command line, in bash, PowerShell and cmd alike."""
    text = str(path)
    return f'"{text}"' if any(not (c.isalnum() or c in "._-/\\:+=@,~") for c in text) else text


def tell_next(command: str) -> None:
    """What to type now: the last line that a verb prints."""
    typer.echo(f"next: {command}")
