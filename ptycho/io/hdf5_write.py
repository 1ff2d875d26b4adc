"""Writing patterns as one compressed HDF5 dataset."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import OutputError
from ptycho.frames import UNITS, Quantity

if TYPE_CHECKING:
    import h5py


def write_hdf5(
    path: str | os.PathLike[str],
    patterns: NDArray[Any] | Iterable[NDArray[Any]],
    calibration: Mapping[str, Any] | None = None,
    dataset: str = "entry/data",
) -> Path:
    """Write patterns (slow, fast, ky, kx) in electrons, or scan lines (fast, ky, kx), as one compressed dataset.

    Integers from 0 to 65534 become uint16 (lines of an iterable: when their type is an integer), everything else float32.
    ``calibration`` holds values or Quantities by the recipe's names; the reader finds them again. An older file is replaced
    only when the new one is complete. Raises OutputError when it cannot be written.
    """
    import h5py

    path = Path(path)
    integer = _fits_uint16(patterns) if isinstance(patterns, np.ndarray) else None
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        with h5py.File(temporary, "w") as file:
            data: Any = None
            for y, line in enumerate(patterns):
                if line.ndim != 3 or (data is not None and data.shape[1:] != line.shape):
                    raise OutputError(f"{path}: scan line {y} has the shape {line.shape}; all must be alike, (fast, ky, kx)")
                if data is None:
                    integer = line.dtype.kind in "bu" if integer is None else integer
                    data = _create(file, dataset, line.shape, "u2" if integer else "f4")
                data.resize(y + 1, axis=0)
                data[y] = line
            if data is None:
                raise OutputError(f"{path}: there are no patterns to write")
            _write_attributes(data, calibration or {})
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise OutputError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
    return path


def _fits_uint16(patterns: NDArray[Any]) -> bool:
    """True for whole numbers that uint16 holds; its largest value is kept for pixels that were not measured."""
    return all(bool((line >= 0).all() and (line < 65535).all() and (line == np.round(line)).all()) for line in patterns)


def _create(file: h5py.File, name: str, line_shape: tuple[int, ...], dtype: str) -> Any:
    # gzip and not a faster filter: every HDF5 program reads it.
    shape = (0, *line_shape)
    chunk = (1, 1, *line_shape[1:])
    data = file.create_dataset(name, shape, dtype, maxshape=(None, *line_shape), chunks=chunk, compression="gzip", compression_opts=1, shuffle=True)
    data.attrs["units"] = "electrons"
    return data


def _write_attributes(data: Any, calibration: Mapping[str, Any]) -> None:
    for key, given in calibration.items():
        value = given.value if isinstance(given, Quantity) else given
        if key in UNITS and key != "adu_per_electron" and value is not None:  # the patterns are in electrons already
            data.attrs[key] = np.asarray(value, float)
            data.attrs[f"{key}_units"] = UNITS[key]
