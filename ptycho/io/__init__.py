"""Reading and writing 4D-STEM data: one table from suffix to reader, one function ``read``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ptycho.aberrations import parse_aberrations
from ptycho.data import Dataset4D
from ptycho.errors import DataError, RecipeError
from ptycho.frames import UNITS, FrameSource, Quantity
from ptycho.io import empad, hdf5_dialects, numpy_file
from ptycho.io.checks import LIMITS, check_affine, check_box, check_number, check_shape, check_step, check_whole
from ptycho.io.empad import write_empad
from ptycho.io.files import file_size, unreadable
from ptycho.io.gain import find_adu_per_electron, sample_frames
from ptycho.io.hdf5_write import write_hdf5
from ptycho.io.images import read_image
from ptycho.io.options import Options
from ptycho.io.scan import place_frames, read_positions
from ptycho.io.source import ArraySource
from ptycho.preparation import Preparation

__all__ = ["FORMATS", "open_source", "read", "write_empad", "write_hdf5"]

PathLike: TypeAlias = str | os.PathLike[str]
Opener: TypeAlias = Callable[[Path, Options], FrameSource]

#: Format -> reader. A new format is one module and one line in each of these tables.
FORMATS: Mapping[str, Opener] = {
    "empad": empad.open_empad,
    "hdf5": hdf5_dialects.open_hdf5,
    "npy": numpy_file.open_npy,
    "npz": numpy_file.open_npz,
}
_SUFFIXES = {
    ".raw": "empad", ".xml": "empad",
    ".h5": "hdf5", ".hdf5": "hdf5", ".hdf": "hdf5", ".emd": "hdf5", ".nxs": "hdf5", ".cxi": "hdf5", ".mat": "hdf5",
    ".npy": "npy", ".npz": "npz",
}  # fmt: skip
_MAGIC = ((b"\x89HDF\r\n\x1a\n", "hdf5"), (b"\x93NUMPY", "npy"), (b"PK\x03\x04", "npz"))


def read(
    path: PathLike | NDArray[Any],
    *,
    format: str | None = None,
    voltage_kV: float | None = None,
    semiangle_mrad: float | None = None,
    defocus_A: float | None = None,
    aberrations: Mapping[str, float] | None = None,
    scan_shape: Sequence[int] | None = None,
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
    detector_crop: Sequence[int] | None = None,
    bin: int = 1,
    mask: PathLike | NDArray[Any] | None = None,
    dark: PathLike | NDArray[Any] | None = None,
    adu_per_electron: float | None = None,
) -> Dataset4D:
    """Open a 4D-STEM data set: EMPAD raw or xml, HDF5 ("file.h5::/entry/data" names a dataset), npy, npz, or an array.

    Patterns stay in the file; only when the type is no integer and ``adu_per_electron`` is not given, up to 200 of them are read to
    find it. Values given here win over the file's. ``step_A`` is one number or (slow, fast); ``scan_region`` and ``detector_crop``
    are (y0, y1, x0, x1); ``pixel_invA`` and ``pixel_mrad`` are those of the detector before ``bin``; ``positions_file`` (csv, npy,
    h5) has two columns y, x in Å, one row for each pattern; ``mask`` (npy, tiff or array; nonzero = use) has the final pattern's
    shape, ``dark`` the stored frame's and unit. Raises RecipeError for a wrong value given here, DataError for a file that cannot be used.
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
    wanted_shape = None if scan_shape is None else check_shape("scan.shape", scan_shape)
    region = None if scan_region is None else check_box("data.scan_region", scan_region)
    crop = None if detector_crop is None else check_box("data.detector_crop", detector_crop)

    source = ArraySource(path) if isinstance(path, np.ndarray) else open_source(path, format)
    try:
        warnings = list(source.header.warnings)
        calibration = _calibration(source, user, warnings)
        positions = None if positions_file is None else read_positions(positions_file)
        shape, frames, positions = place_frames(source, wanted_shape, region, positions, warnings)
        flip = Quantity(flip_rows, "", "user") if flip_rows is not None else _default_flip(source)
        calibration["flip_rows"] = flip
        if "adu_per_electron" not in calibration:
            calibration["adu_per_electron"] = _gain(source, calibration, warnings)
        preparation = Preparation(
            dark=None if dark is None else read_image("data.dark", dark, source.header.frame_shape),
            adu_per_electron=calibration["adu_per_electron"].value,
            transpose=transpose,
            flip_rows=bool(flip.value),
            flip_columns=flip_columns,
            detector_crop=crop,
            bin=check_whole("data.bin", bin),
        )
        pattern_shape = preparation.pattern_shape(source.header.frame_shape)
        if mask is not None:
            preparation = replace(preparation, mask=read_image("data.mask", mask, pattern_shape) != 0)
        data = Dataset4D(source, preparation, calibration, shape, frames, positions, list(dict.fromkeys(warnings)), arguments)
        if {"voltage_kV", "semiangle_mrad"} <= calibration.keys() and ({"pixel_invA", "pixel_mrad"} & calibration.keys()):
            data.check_disk_fits(data.pixel_invA.value)
    except BaseException:
        source.close()
        raise
    return data


def open_source(path: PathLike, format: str | None = None) -> FrameSource:
    """The frames of a file as stored, by ``format``, suffix or first bytes. Raises DataError when it cannot be opened."""
    name, _, dataset = os.fspath(path).partition("::")
    file = Path(name).expanduser()
    if format is not None and format not in FORMATS:
        raise RecipeError(f"data.format = {format!r}: unknown; known are {', '.join(FORMATS)}")
    return FORMATS[format or _guess_format(file)](file, Options(dataset=dataset or None))


def _guess_format(path: Path) -> str:
    file_size(path)
    try:
        with open(path, "rb") as file:
            head = file.read(520)
    except OSError as error:
        raise unreadable(path, error) from None
    if head.startswith(b"MATLAB 5.0"):
        raise DataError(f"{path}: this is a MATLAB 5 file; save it in MATLAB with save(..., '-v7.3')")
    if path.suffix.lower() in _SUFFIXES:
        return _SUFFIXES[path.suffix.lower()]
    for magic, format in _MAGIC:
        if head.startswith(magic) or head[512:].startswith(magic):
            return format
    raise DataError(f"{path}: the format is not recognised; known are {', '.join(_SUFFIXES)}; choose one with format = {' | '.join(FORMATS)}")


# What the file says


def _calibration(source: FrameSource, user: dict[str, Quantity], warnings: list[str]) -> dict[str, Quantity]:
    """The file's usable values with the user's in their place."""
    name = source.header.path.name
    calibration = {key: q for key, q in source.header.metadata.items() if key != "scan_shape" and _usable(key, q, warnings)}
    for key in ("voltage_kV", "step_A", "pixel_invA", "pixel_mrad", "semiangle_mrad", "adu_per_electron"):
        if key in user and key in calibration and _differ(user[key].value, calibration[key].value):
            warnings.append(f"{key} = {_shown(user[key])} is used; {calibration[key].source} says {_shown(calibration[key])}")
    if {"pixel_invA", "pixel_mrad"} & user.keys():
        calibration = {key: q for key, q in calibration.items() if key not in ("pixel_invA", "pixel_mrad")}
    if "aberrations" in user:
        calibration.pop("defocus_A", None)  # the file's defocus is not the C10 of the list that was given
    if "step_A" in calibration and "step_A" not in user and not calibration["step_A"].trusted:
        warnings.append(f"step_A = {_shown(calibration['step_A'])} is a guess ({calibration['step_A'].source}); check it")
    rotation = calibration.get("rotation_deg")
    if rotation is None or not rotation.trusted:
        said = "" if rotation is None else f"; {rotation.source} says {rotation.value:g}, which is not applied"
        calibration["rotation_deg"] = Quantity(0.0, "°", f"default: 0{said}")
        if rotation is not None and abs(rotation.value) > 0.01 and "rotation_deg" not in user:
            warnings.append(f"{name}: a scan rotation of {rotation.value:.2f}° is recorded and not applied; give rotation_deg")
    return {**calibration, **user}


def _usable(key: str, quantity: Quantity, warnings: list[str]) -> bool:
    """False, with a warning, for a value of the file that cannot be true (a voltage of 0 when the gun was off)."""
    try:
        if key in LIMITS:
            check_number(key, quantity.value)
        elif key == "step_A":
            check_step(quantity.value)
    except RecipeError:
        warnings.append(f"{key} = {quantity.value} from {quantity.source} is not used: it is not possible")
        return False
    return True


def _differ(a: Any, b: Any) -> bool:
    return bool(np.any(np.abs(np.divide(a, b) - 1) > 0.05))


def _shown(quantity: Quantity) -> str:
    values = np.atleast_1d(quantity.value)
    return f"{' x '.join(f'{v:.4g}' for v in dict.fromkeys(values.tolist()))} {quantity.unit}"


def _default_flip(source: FrameSource) -> Quantity:
    why = "default: EMPAD stores rows upside down" if source.header.format == "empad" else "default: rows as stored"
    return Quantity(source.header.flip_rows, "", why)


def _gain(source: FrameSource, calibration: dict[str, Quantity], warnings: list[str]) -> Quantity:
    """ADU per electron from the data, else what is typical of the detector."""
    if source.header.dtype.kind in "biu" and source.header.dtype.itemsize <= 4 and source.header.format != "empad":
        return Quantity(1.0, "ADU", "default: counts are integers")
    found = find_adu_per_electron(sample_frames(source))
    voltage = calibration["voltage_kV"].value if source.header.format == "empad" and "voltage_kV" in calibration else None
    typical = None if voltage is None else empad.typical_adu_per_electron(voltage)
    if found is not None:
        if typical is not None and found[0] != 1 and not 0.6 < found[0] / typical < 1.6:
            warnings.append(f"adu_per_electron = {found[0]:.4g} ({found[1]}); an EMPAD has about {typical:.0f} at {voltage:g} kV: check it")
        return Quantity(found[0], "ADU", f"estimate: {found[1]}", trusted=False)
    if typical is not None:
        warnings.append(f"adu_per_electron = {typical:.0f} is only typical of an EMPAD at {voltage:g} kV; give adu_per_electron when you know it")
        return Quantity(typical, "ADU", f"default: typical of an EMPAD at {voltage:g} kV", trusted=False)
    warnings.append("adu_per_electron is not known and taken as 1: the dose may be wrong; give adu_per_electron")
    return Quantity(1.0, "ADU", "default: not known", trusted=False)
