"""``ptycho image``: what the data show at once, before any reconstruction."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ptycho.cli.arguments import (
    FlipColumns,
    FlipRows,
    PixelInvA,
    RotationDeg,
    ScanShape,
    SemiangleMrad,
    Settings,
    StepA,
    Threads,
    Transpose,
    VoltageKV,
    numbers,
    recipe_for,
    settings_of,
)

if TYPE_CHECKING:
    from ptycho.data import Dataset4D
    from ptycho.pictures import Looks, Picture

CONTACT_SHEET = "contact_sheet.png"


class Descan(StrEnum):
    """What of the centre of mass the beam's own movement explains."""

    none = "none"
    constant = "constant"
    plane = "plane"


def image(
    source: Annotated[str, typer.Argument(metavar="RECIPE|FILE", help="A recipe.toml or a 4D-STEM file.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="For the pictures.")] = Path("images"),
    only: Annotated[str | None, typer.Option("--only", metavar="NAMES", help="As in bf,idpc; default: all.")] = None,
    set_: Settings = None,
    descan: Annotated[Descan, typer.Option(help="Taken off the centre of mass.")] = Descan.plane,
    highpass: Annotated[str, typer.Option("--highpass", metavar="1/Å|noise", help="Hold back low frequencies of iDPC.")] = "0",
    voltage_kV: VoltageKV = None,
    semiangle_mrad: SemiangleMrad = None,
    scan_shape: ScanShape = None,
    step_A: StepA = None,
    rotation_deg: RotationDeg = None,
    pixel_invA: PixelInvA = None,
    flip_rows: FlipRows = None,
    flip_columns: FlipColumns = False,
    transpose: Transpose = False,
    threads: Threads = 0,
) -> None:
    """Virtual detectors, CoM, DPC, iDPC and dCoM as TIFF and PNG, and contact_sheet.png with all of them."""
    given = {
        "microscope.voltage_kV": voltage_kV, "microscope.semiangle_mrad": semiangle_mrad, "scan.shape": numbers(scan_shape, "--scan-shape"),
        "scan.step_A": numbers(step_A, "--step-A"), "scan.rotation_deg": rotation_deg, "detector.pixel_invA": pixel_invA,
        "data.flip_rows": flip_rows, "data.flip_columns": flip_columns or None, "data.transpose": transpose or None,
    }  # fmt: skip
    held = highpass if highpass == "noise" else numbers(highpass, "--highpass")
    data = recipe_for(source, settings_of(given, set_)).read()
    look = _look(data, descan.value, held, threads)
    from ptycho.pictures import make_pictures

    pictures, missing = make_pictures(look, only.split(",") if only else ())
    hint = _orientation_hint(look)
    notes = [f"no {name}: {why}" for name, why in missing] + ([hint] if hint else [])
    _write(output, data, pictures, notes)
    for line in (*data.warnings, *notes):
        typer.echo(f"  {line}")
    typer.echo(f"{len(pictures)} pictures: {output / CONTACT_SHEET}")


def _look(data: Dataset4D, descan: Any, highpass_invA: Any, threads: int) -> Looks:
    import torch

    from ptycho.pictures import Looks

    if threads > 0:
        torch.set_num_threads(threads)
    return Looks(data, descan, highpass_invA)


def _write(output: Path, data: Dataset4D, pictures: list[Picture], notes: list[str]) -> None:
    """Every picture as TIFF and PNG, and the sheet; each file is replaced only by a complete one."""
    from ptycho.atomic import write_file
    from ptycho.errors import DataError, OutputError
    from ptycho.io.images import image_tiff
    from ptycho.plot_pictures import contact_sheet_png, picture_png

    try:
        step_A = data.scan_step_A
    except DataError:
        step_A = None
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{output}: {error.strerror or error}; give a folder that can be written with -o") from None
    for picture in pictures:
        write_file(output / f"{picture.name}.tif", image_tiff(picture.image, step_A or (1.0, 1.0), picture.unit))
        write_file(output / f"{picture.name}.png", picture_png(picture, step_A))
    scan, pattern = (f"{a} x {b}" for a, b in (data.scan_shape, data.pattern_shape))
    headline = f"{data.name}   ·   {scan} patterns of {pattern} px"
    write_file(output / CONTACT_SHEET, contact_sheet_png(pictures, step_A, headline, notes))


def _orientation_hint(look: Looks) -> str | None:
    """What the curl of the centre of mass says of the detector's orientation, when that is plain and not what the data set says."""
    from ptycho.errors import PtychoError
    from ptycho.orientation import disagreement

    try:
        return disagreement(look.data, look.sums.centre_px)
    except PtychoError:
        return None
