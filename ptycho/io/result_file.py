"""The files of a finished run: result.h5 (everything), phase.tif (for ImageJ), phase.png (to glance at).

result.h5 is HDF5 in the style of EMD: ``object`` and ``probe`` are groups with ``data`` and one ``dim`` per axis. Every dataset has
``units`` and, being an array, a Fletcher-32 checksum per chunk; ``sha256`` is that of the whole content. Only numbers and text
of fixed length: nothing in the file is ever executed, and HDF5 has no heap of variable-length strings to lose its way in.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tifffile
from numpy.typing import NDArray

from ptycho.atomic import make_folder, write_file
from ptycho.errors import DataError
from ptycho.io.files import file_size, unreadable
from ptycho.io.records import read_array, read_record, read_text, text_array, write_array, write_record, write_text
from ptycho.result import EpochRecord, Result

RESULT, TIFF, PNG = "result.h5", "phase.tif", "phase.png"
FORMAT, FORMAT_VERSION = "ptycho result", 3
#: From this version on the checksum of all bytes before it stands behind the end of the HDF5 file, which HDF5 does not look at.
_SEALED, _SEAL = 3, b"\nsha256 "

_ERRORS = (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError)
#: Field of Result -> (dataset, unit, number of axes, kind of number).
_ARRAYS = {
    "object": ("object/data", "1", 4, "c"),
    "occupancy": ("occupancy", "1", 1, "f"),
    "slice_thickness_A": ("slice_thickness", "Å", 1, "f"),
    "probe": ("probe/data", "√electrons", 3, "c"),
    "positions_A": ("positions", "Å", 2, "f"),
    "tilt_mrad": ("tilt", "mrad", 2, "f"),
}
_SCALARS = {"pixel_A": "Å", "voltage_kV": "kV", "semiangle_mrad": "mrad"}
_HISTORY = {"stage": "1", "kind": "", "epoch": "1", "loss": "deviance per pixel", "seconds": "s", "held_out": "1", "note": ""}
#: What files of format 1 do not have.
_HISTORY_2 = ("held_out", "note")
#: Fields of Result that are records, or None: each a group of its own name.
_RECORDS = ("residual", "quality", "instrument", "examples", "account")


def save_result(result: Result, directory: str | os.PathLike[str]) -> Path:
    """Write result.h5, phase.tif and phase.png into ``directory`` (made when missing) and return the path of result.h5.

    Each file appears under its name only when it is complete and on the disk; an older one stays until then. phase.tif holds
    the whole phase (slices, y, x), float32 in rad, with ImageJ's scale in Å. Raises OutputError when they cannot be written.
    """
    from ptycho.plot import phase_png

    folder = Path(directory)
    # The arrays first: a picture that fails must not take the result with it.
    path = write_result(folder / RESULT, result)
    write_file(folder / TIFF, phase_tiff(result))
    write_file(folder / PNG, phase_png(result))
    return path


def write_result(path: Path, result: Result) -> Path:
    """Write a result as one HDF5 file, its folder made when missing. Raises OutputError."""
    make_folder(path.parent, path)
    content = bytes(_hdf5(result))
    return write_file(path, content + _SEAL + hashlib.sha256(content).hexdigest().encode())


def load_result(path: str | os.PathLike[str]) -> Result:
    """The Result in a run folder or its result.h5, the same numbers to the last bit.

    Raises DataError for a missing, truncated, damaged or foreign file.
    """
    given = Path(path).expanduser()
    file_path = given / RESULT if given.is_dir() else given
    if given.is_dir() and not file_path.exists():
        raise DataError(f"{given}: there is no {RESULT} in this folder; has the run finished?")
    file_size(file_path)
    sealed = _check_seal(file_path)
    try:
        with h5py.File(file_path, "r") as file:
            _check_format(file_path, file, sealed)
            result = _read(file)
            digest = read_text(file.attrs["sha256"])
    except _ERRORS as error:
        raise unreadable(file_path, error, "not a complete result of ptycho") from None
    problem = "its content does not have its checksum" if _digest(result) != digest else _inconsistency(result)
    if problem:
        raise DataError(f"{file_path}: {problem}; the file is damaged, reconstruct again")
    return result


def _hdf5(result: Result) -> memoryview:
    """The file as bytes: written in memory, so that a full disk meets a plain write and not the HDF5 library half-way."""
    content = io.BytesIO()
    with h5py.File(content, "w", libver=("v108", "v108")) as file:
        file.attrs["format_version"] = FORMAT_VERSION
        write_text(file, "format", FORMAT)
        file.attrs["version_major"], file.attrs["version_minor"] = 0, 2  # of EMD
        for name in _SCALARS:
            file.attrs[name] = np.float64(getattr(result, name))
            write_text(file, f"{name}_units", _SCALARS[name])
        for name, (dataset, unit, _, _) in _ARRAYS.items():
            write_array(file, dataset, getattr(result, name), unit)
        depth_A = np.concatenate([[0.0], np.cumsum(result.slice_thickness_A)[:-1]])
        _dimensions(file["object"], result.pixel_A, ("state", np.arange(len(result.object)), "1"), ("z", depth_A, "Å"))
        _dimensions(file["probe"], result.pixel_A, ("mode", np.arange(len(result.probe)), "1"))
        for column, unit in _HISTORY.items():
            values = [getattr(record, column) for record in result.history]
            numbers = np.array([math.nan if value is None else value for value in values]) if unit else text_array(values)
            write_array(file, f"history/{column}", numbers, unit)
        write_array(file, "recipe", text_array([result.recipe]), "")
        for name in _RECORDS:
            if getattr(result, name) is not None:
                write_record(file, name, getattr(result, name))
        aberrations, versions = file.create_group("aberrations"), file.create_group("versions")
        for name, value in result.aberrations.items():
            aberrations.attrs[name] = np.float64(value)
        write_text(aberrations, "units", "Å, deg")
        for name, text in result.versions.items():
            write_text(versions, name, text)
        write_text(file, "sha256", _digest(result))
        file.attrs["complete"] = 1
    return content.getbuffer()


def _dimensions(group: h5py.Group, pixel_A: float, *leading: tuple[str, NDArray[Any], str]) -> None:
    """EMD's dim1, dim2 ... of ``data``: the leading axes, then y and x."""
    group.attrs["emd_group_type"] = 1
    height, width = group["data"].shape[-2:]
    axes = (*leading, ("y", np.arange(height) * pixel_A, "Å"), ("x", np.arange(width) * pixel_A, "Å"))
    for number, (name, values, unit) in enumerate(axes, 1):
        write_array(group, f"dim{number}", values, unit)
        write_text(group[f"dim{number}"], "name", name)


def _digest(result: Result) -> str:
    """SHA-256 of all that is in a Result. HDF5's checksums do not cover where the chunks of a dataset are."""
    sha = hashlib.sha256()
    _feed(sha.update, result, "")
    return sha.hexdigest()


def _feed(update: Callable[[Any], None], record: Any, prefix: str) -> None:
    """Every field of a record to the checksum; what is None is not there, as in files from before the field existed."""
    for field in dataclasses.fields(record):
        name, value = prefix + field.name, getattr(record, field.name)
        if isinstance(value, np.ndarray):
            update(f"{name} {value.shape} {value.dtype.str}".encode())
            update(np.ascontiguousarray(value).data)
        elif dataclasses.is_dataclass(value):
            _feed(update, value, f"{name}/")
        elif value is not None:
            update(f"{name} {_plain(value)!r}".encode())


def _plain(value: Any) -> Any:
    """Text and floats only, so that 1, 1.0 and NumPy's numbers have the same checksum before and after the file."""
    if isinstance(value, dict):
        return sorted((name, _plain(item)) for name, item in value.items())
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, EpochRecord):
        # What says nothing is left out: files of format 1 keep their checksum.
        return _plain(tuple(item for item in dataclasses.astuple(value) if item not in (None, "")))
    return value if isinstance(value, str) else float(value)


def phase_tiff(result: Result) -> memoryview:
    """phase (slices, y, x) as an ImageJ stack: scale, slice spacing and a display range taken from the scanned field."""
    from ptycho.plot import robust_limits  # matplotlib only when there is something to draw

    low, high = robust_limits(result.phase[(slice(None), *result.scanned)])
    metadata = {
        "axes": "ZYX",
        "unit": "\\u00C5",  # Å, escaped as ImageJ itself does it: its header is ASCII
        "spacing": float(result.slice_thickness_A.mean()),
        "min": low,
        "max": high,
    }
    content = io.BytesIO()
    per_unit = 1 / result.pixel_A
    tifffile.imwrite(content, result.phase, imagej=True, resolution=(per_unit, per_unit), metadata=metadata)
    return content.getbuffer()


def _check_seal(path: Path) -> bool:
    """Whether a checksum of the whole file stands behind its end. Raises DataError when a byte is not what was written."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None
    body, seal, digest = content.rpartition(_SEAL)
    if seal and hashlib.sha256(body).hexdigest().encode() != digest:
        raise DataError(f"{path}: its bytes do not have their checksum; the file is damaged, reconstruct again")
    return bool(seal)


def _check_format(path: Path, file: h5py.File, sealed: bool) -> None:
    found = read_text(file.attrs.get("format", b""))
    if found != FORMAT:
        raise DataError(f"{path}: not a result of ptycho (its format is {found!r}); name a run folder or its {RESULT}")
    version = int(file.attrs["format_version"])
    if version > FORMAT_VERSION:
        raise DataError(f"{path}: written by a newer ptycho (format {version}, this one reads {FORMAT_VERSION}); update ptycho")
    if version >= _SEALED and not sealed:
        raise DataError(f"{path}: the checksum at its end is damaged or cut off; reconstruct again")
    if not file.attrs.get("complete"):
        raise DataError(f"{path}: was not written to its end; run the reconstruction again")


def _read(file: h5py.File) -> Result:
    stored = [name for name in _HISTORY if name not in _HISTORY_2 or f"history/{name}" in file]
    columns = [read_array(file, f"history/{name}") for name in stored]
    history = tuple(_record(**dict(zip(stored, row, strict=True))) for row in zip(*columns, strict=True))
    fields: dict[str, Any] = {name: read_array(file, dataset) for name, (dataset, *_) in _ARRAYS.items()}
    fields |= {name: float(file.attrs[name]) for name in _SCALARS}
    fields |= {name: read_record(file, name) for name in _RECORDS}
    return Result(
        **fields,
        history=history,
        recipe=read_text(read_array(file, "recipe")[0]),
        versions={name: read_text(value) for name, value in file["versions"].attrs.items()},
        aberrations={name: float(value) for name, value in file["aberrations"].attrs.items() if name != "units"},
    )


def _record(stage: Any, kind: Any, epoch: Any, loss: Any, seconds: Any, held_out: Any = math.nan, note: Any = "") -> EpochRecord:
    known = None if math.isnan(held_out) else float(held_out)
    return EpochRecord(int(stage), read_text(kind), int(epoch), float(loss), float(seconds), known, read_text(note))


def _inconsistency(result: Result) -> str | None:
    """What does not fit together, as a sentence; None when all does."""
    for name, (dataset, _, axes, kind) in _ARRAYS.items():
        array = getattr(result, name)
        if array.ndim != axes or array.dtype.kind != kind or not array.size:
            return f"{dataset} has the shape {array.shape} of {array.dtype}"
    states, slices = result.object.shape[:2]
    if len(result.occupancy) != states or len(result.slice_thickness_A) != slices:
        return f"{states} states and {slices} slices, but {len(result.occupancy)} occupancies and {len(result.slice_thickness_A)} thicknesses"
    if result.positions_A.shape[1] != 2 or result.tilt_mrad.shape not in ((1, 2), result.positions_A.shape):
        return f"positions have the shape {result.positions_A.shape}, tilts {result.tilt_mrad.shape}"
    maps = (result.quality.standard_error_rad, result.quality.shot_noise_rad, result.quality.constrained) if result.quality else ()
    if any(image.shape != result.object.shape[-2:] for image in maps):
        return f"the maps of quality have the shapes {', '.join(str(image.shape) for image in maps)}, the object {result.object.shape}"
    if result.examples and not result.examples.measured_e.shape == result.examples.modelled_e.shape == (3, *result.examples.measured_e.shape[1:]):
        return f"the examples have the shapes {result.examples.measured_e.shape} and {result.examples.modelled_e.shape}"
    if result.account and result.account.moved_A.shape not in ((0, 2), result.positions_A.shape):
        return f"positions have the shape {result.positions_A.shape}, their shifts {result.account.moved_A.shape}"
    if not (math.isfinite(result.pixel_A) and result.pixel_A > 0 and np.isfinite(result.positions_A).all()):
        return f"positions are not finite, or the pixel of {result.pixel_A} Å is not positive"
    return None
