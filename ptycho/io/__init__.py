"""Reading and writing 4D-STEM data: one function ``read`` for all formats of ``ptycho.io.formats``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ptycho.aberrations import parse_aberrations
from ptycho.data import Dataset4D
from ptycho.errors import RecipeError
from ptycho.frames import UNITS, FrameSource, Quantity
from ptycho.geometry import raster_positions_A
from ptycho.io.alignment import Descan, View, aim
from ptycho.io.checks import (
    check_affine,
    check_box,
    check_centre,
    check_counts,
    check_descan,
    check_memory,
    check_number,
    check_shape,
    check_step,
    check_whole,
    check_window,
)  # fmt: skip
from ptycho.io.emd_write import write_hdf5
from ptycho.io.empad import write_empad
from ptycho.io.formats import FORMATS, open_source
from ptycho.io.gain import sample_frames
from ptycho.io.images import read_image
from ptycho.io.known import calibration_of, default_flip, gain_of
from ptycho.io.options import Options, RawLayout
from ptycho.io.scan import Placed, ScanRequest, place_frames, read_positions
from ptycho.io.source import ArraySource
from ptycho.preparation import Preparation

__all__ = ["FORMATS", "Options", "RawLayout", "open_source", "read", "write_empad", "write_hdf5"]

PathLike: TypeAlias = str | os.PathLike[str]
Image: TypeAlias = PathLike | NDArray[Any]


def read(
    path: PathLike | NDArray[Any],
    *,
    format: str | None = None,
    layout: RawLayout | Mapping[str, Any] | None = None,
    calibration_file: PathLike | None = None,
    voltage_kV: float | None = None,
    semiangle_mrad: float | None = None,
    defocus_A: float | None = None,
    aberrations: Mapping[str, float] | None = None,
    scan_shape: Sequence[int] | None = None,
    flyback: Sequence[int] | None = None,
    skip_frames: int = 0,
    step_A: float | Sequence[float] | None = None,
    rotation_deg: float | None = None,
    affine: Sequence[Sequence[float]] | None = None,
    positions_file: PathLike | None = None,
    pixel_invA: float | None = None,
    pixel_mrad: float | None = None,
    flip_rows: bool | None = None,
    flip_columns: bool = False,
    transpose: bool = False,
    scan_region: Sequence[int] | None = None,
    centre: str | Sequence[float] | None = None,
    window: int | Sequence[int] | None = None,
    detector_crop: Sequence[int] | None = None,
    descan: Descan | None = None,
    bin: int = 1,
    mask: Image | None = None,
    dark: Image | None = None,
    gain: Image | None = None,
    adu_per_electron: float | None = None,
    memory_GB: float | None = None,
) -> Dataset4D:
    """Open a 4D-STEM data set: a file of any format in ``FORMATS`` ("file.h5::/entry/data" names a dataset in it), a folder, or an array.

    Patterns stay in the file; up to 200 of them are read to find the centre and electrons per count. Values given here win over the
    file's.

    Scan: ``scan_shape`` (slow, fast) without ``flyback`` (frames before, after each line) and after ``skip_frames``; ``step_A`` one number or
    (slow, fast); ``positions_file`` (csv, npy, h5) two columns y, x in Å, one row for each pattern; ``scan_region`` (y0, y1, x0, x1).

    Detector: ``transpose``, then ``flip_rows`` and ``flip_columns``; then the window: ``centre`` (y, x) in pixels, "auto" (the bright-field
    disk; the default without ``detector_crop`` and ``mask``) or "none", ``window`` its size (larger than the frame: padded with pixels
    that were not measured), or ``detector_crop`` (y0, y1, x0, x1); ``descan`` "plane" or "parabola" moves the window with the disk; ``bin`` last.
    ``pixel_invA`` and ``pixel_mrad`` are those before ``bin``. ``mask`` (npy, tiff or array; nonzero = use) has the final pattern's shape,
    ``dark`` (ADU) and ``gain`` (a factor) the stored frame's.

    ``layout`` describes raw binary files, ``calibration_file`` holds the maps of an EMPAD-G2. At most ``memory_GB`` of patterns are kept in
    memory by a reconstruction (default: half of what is free); more are read as they are needed.

    Raises RecipeError for a wrong value given here, DataError for a file that cannot be used.
    """
    arguments = {name: value for name, value in locals().items() if value is not None}
    given = {
        "voltage_kV": voltage_kV, "semiangle_mrad": semiangle_mrad, "defocus_A": defocus_A, "rotation_deg": rotation_deg,
        "pixel_invA": pixel_invA, "pixel_mrad": pixel_mrad, "adu_per_electron": adu_per_electron,
    }  # fmt: skip
    user: dict[str, Quantity] = {name: Quantity(check_number(name, value), UNITS[name], "user") for name, value in given.items() if value is not None}
    if pixel_invA is not None and pixel_mrad is not None:
        raise RecipeError("detector.pixel_invA and detector.pixel_mrad are both given; keep one")
    if step_A is not None:
        user["step_A"] = Quantity(check_step(step_A), "Å", "user")
    if affine is not None:
        user["affine"] = Quantity(check_affine(affine), "", "user")
    if aberrations:
        parse_aberrations({**aberrations, **({} if defocus_A is None else {"defocus_A": defocus_A})})
        user["aberrations"] = Quantity(dict(aberrations), "Å, °", "user")
    request = ScanRequest(
        shape=None if scan_shape is None else check_shape("scan.shape", scan_shape),
        region=None if scan_region is None else check_box("data.scan_region", scan_region),
        flyback=None if flyback is None else check_counts("scan.flyback", flyback),
        skip=check_counts("scan.skip_frames", (skip_frames, 0))[0],
    )
    # A crop and a mask were made by someone who looked at the patterns as they are.
    view = View(
        centre=check_centre(centre if centre is not None else "auto" if detector_crop is None and mask is None else "none"),
        window=check_window(window),
        crop=None if detector_crop is None else check_box("data.detector_crop", detector_crop),
        descan=check_descan(descan),
    )
    if view.crop is not None and (view.window is not None or view.centre != "none"):
        raise RecipeError("data.detector_crop is given beside data.window or data.centre; keep one of them")
    options = Options(
        scan_shape=request.shape,
        layout=RawLayout(**layout) if isinstance(layout, Mapping) else layout,
        calibration_file=None if calibration_file is None else Path(calibration_file),
    )
    limit = check_memory(memory_GB)

    source: FrameSource = ArraySource(path) if isinstance(path, np.ndarray) else open_source(path, format, options)
    try:
        header = source.header
        warnings = list(header.warnings)
        calibration = calibration_of(header, user, warnings)
        if positions_file is not None:
            request = replace(request, positions=read_positions(positions_file))
        placed = place_frames(header, request, warnings)
        flip = Quantity(flip_rows, "", "user") if flip_rows is not None else default_flip(header)
        calibration["flip_rows"] = flip
        looks = view.centre == "auto" or "adu_per_electron" not in calibration
        sample = sample_frames(source) if looks else np.empty((0, *header.frame_shape), header.dtype)
        if "adu_per_electron" not in calibration:
            calibration["adu_per_electron"] = gain_of(header, sample, calibration, warnings)
        preparation = Preparation(
            dark=None if dark is None else read_image("data.dark", dark, header.frame_shape),
            gain=None if gain is None else read_image("data.gain", gain, header.frame_shape),
            bad_pixels=header.bad_pixels,
            saturation=header.saturation,
            adu_per_electron=calibration["adu_per_electron"].value,
            transpose=transpose,
            flip_rows=bool(flip.value),
            flip_columns=flip_columns,
            bin=check_whole("data.bin", bin),
        )
        aimed = aim(view, source, preparation, sample, placed.frames, _places(placed))
        preparation = replace(preparation, box=aimed.box)
        calibration |= aimed.found
        pattern_shape = preparation.pattern_shape(header.frame_shape)
        if mask is not None:
            preparation = replace(preparation, mask=read_image("data.mask", mask, pattern_shape) != 0)
        data = Dataset4D(
            source, preparation, calibration, placed.shape, placed.frames, placed.points, placed.positions, aimed.shifts_px,
            memory_GB=limit, warnings=list(dict.fromkeys(warnings)), given=arguments,
        )  # fmt: skip
        data.check_known_disk()
    except BaseException:
        source.close()
        raise
    return data


def _places(placed: Placed) -> NDArray[np.float64]:
    """Scan coordinates (N, 2) of the patterns, in any unit."""
    if placed.positions is not None:
        return placed.positions
    raster = raster_positions_A(placed.shape, (1.0, 1.0))
    return raster if placed.points is None else raster[placed.points]
