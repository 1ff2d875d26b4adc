"""Any readable data set as one chunked, compressed, calibrated HDF5 file (EMD 1.0), streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data import Dataset4D
from ptycho.errors import DataError, OutputError
from ptycho.frames import UNITS, Quantity
from ptycho.geometry import raster_positions_A
from ptycho.io.emd_write import write_emd

_BLOCK_BYTES = 16 << 20
_SUFFIXES = (".h5", ".hdf5", ".emd")


def convert(data: Dataset4D, path: Path, progress: Callable[[int, int], None] | None = None) -> Path:
    """Write the prepared patterns, in electrons, with all that is known of them. ``progress`` is told (patterns done, of how many).

    Counts stay unsigned integers, whose largest value stands for what was not measured; everything else becomes float32 with NaN. Patterns
    that are missing from a raster are written as a list with positions. Raises OutputError when the file cannot be written, DataError
    when the data cannot be read.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise OutputError(f"{path}: HDF5 is what can be written; give a name that ends in {', '.join(_SUFFIXES)}")
    source = data.source.header.path
    if path.exists() and source.exists() and path.samefile(source):
        raise OutputError(f"{path}: this is the file that is read; give another name")
    positions = _positions(data)
    return write_emd(
        path,
        _blocks(data),
        shape=data.scan_shape if positions is None else data.n_positions,
        pattern_shape=data.pattern_shape,
        dtype=_type(data),
        calibration=_calibration(data),
        positions_A=positions,
        mask=data.mask,
        progress=progress,
    )


def _positions(data: Dataset4D) -> NDArray[np.float64] | None:
    """Positions (N, 2) before rotation, which stays in the calibration; None for a complete raster."""
    if data.points is None:
        return data.positions_A
    if "step_A" not in data.calibration:
        raise DataError(f"{data.name}: some scan points have no pattern, so that positions are written; give step_A")
    return raster_positions_A(data.scan_shape, data.calibration["step_A"].value)[data.points]


def _type(data: Dataset4D) -> np.dtype[Any]:
    p, stored = data.preparation, data.source.header.dtype
    if stored.kind not in "bu" or p.adu_per_electron != 1 or p.dark is not None or p.gain is not None or stored.itemsize > 4:
        return np.dtype(np.float32)
    # Binning sums, and a byte has no value left for what was not measured.
    return np.dtype(np.uint32 if stored.itemsize == 4 or p.bin > 1 else np.uint16)


def _blocks(data: Dataset4D) -> Iterator[NDArray[np.float32]]:
    size = max(1, _BLOCK_BYTES // (4 * data.pattern_shape[0] * data.pattern_shape[1]))
    for start in range(0, data.n_positions, size):
        yield data.patterns(slice(start, start + size))


def _calibration(data: Dataset4D) -> dict[str, Quantity]:
    """What is known, for patterns that are in electrons, turned and binned already."""
    found = {key: q for key, q in {**data.source.header.metadata, **data.calibration}.items() if key in UNITS and key != "adu_per_electron"}
    for key in ("pixel_invA", "pixel_mrad"):
        if key in found:
            found[key] = replace(found[key], value=found[key].value * data.preparation.bin)
    # A rotation that the file records and that is not applied would be taken for one that is.
    if "rotation_deg" in data.calibration:
        found["rotation_deg"] = data.calibration["rotation_deg"]
    return found
