"""Electron-counted data of the NCEM 4D Camera: HDF5 as stempy writes it.

``/electron_events/frames`` has for each row a list of the pixels that electrons hit (row * columns + column), ``scan_positions`` the place
of each row in the scan. Version 1 has one row for each position, version 2 may have more rows of the same position, version 3 the same
number of rows for every position. A pixel that is named more than once was hit more than once.
"""

from __future__ import annotations

from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.frames import FrameSource, Header, Quantity
from ptycho.io import hdf5
from ptycho.io.files import file_size
from ptycho.io.options import Options
from ptycho.io.source import runs
from ptycho.io.sparse import COUNTS, CsrSource, Events

if TYPE_CHECKING:
    import h5py

_FRAMES = "electron_events/frames"
_POSITIONS = "electron_events/scan_positions"
#: Detector of files that do not say it.
_CAMERA = (576, 576)
#: Lists of events are slow to read one by one, and fast in blocks.
_BLOCK_FRAMES = 1024
#: A list of variable length, as HDF5 stores it in place: how many, and where they are.
_LIST = np.dtype([("number", "<u4"), ("heap", "<u8"), ("index", "<u4")])


def recognise_stempy(file: h5py.File) -> bool:
    """True when there are lists of electron events."""
    import h5py

    frames = hdf5.find(file, _FRAMES)
    if not isinstance(frames, h5py.Dataset) or frames.ndim != 1:
        return False
    base = h5py.check_vlen_dtype(frames.dtype)
    return isinstance(base, np.dtype) and base.kind in "iu"


def open_stempy(path: Path, file: h5py.File, options: Options) -> FrameSource:
    """Frames (ky, kx) of counts, those of the flyback (the last of every line) included. Raises DataError when the tables do not fit.

    Frames without any electron were lost in the camera: they are left out, and ``header.acquired`` says which are there.
    """
    if options.dataset is not None:
        return hdf5.open_generic(path, file, options)
    events = file[_FRAMES]
    hdf5.check(path, events)
    lengths = _lengths(path, events)
    warnings: list[str] = []
    scan = _pair(hdf5.find(file, _POSITIONS), ("Ny", "Nx"))
    order, starts, acquired = _place_rows(_positions(path, file, len(events)), lengths)
    if not len(acquired):
        raise DataError(f"{path}: there are no electron events in it; has counting failed?")
    header = Header(path, "stempy", len(acquired), _frame_shape(path, events, warnings), COUNTS, warnings=warnings)
    _add_scan(header, scan, acquired)
    header.metadata["adu_per_electron"] = Quantity(1.0, "ADU", f"{path.name}: electrons are counted")
    rows = _Rows(path, file, order, starts)
    return CsrSource(header, rows.load, _BLOCK_FRAMES, rows.close)


class _Rows:
    """Lists of events, read for some frames at a time. Frame k is made of the rows ``order[starts[k]:starts[k + 1]]``."""

    def __init__(self, path: Path, file: h5py.File, order: NDArray[np.int64], starts: NDArray[np.int64]) -> None:
        self._path = path
        self._file: h5py.File | None = file
        self._order, self._starts = order, starts

    def load(self, first: int, last: int) -> Events:
        """The events of frames first to last - 1."""
        if self._file is None:
            self._file = hdf5.open_file(self._path)
        data = self._file[_FRAMES]
        starts = self._starts[first : last + 1]
        rows = self._order[starts[0] : starts[-1]]
        sort = np.argsort(rows)
        lists, at = np.empty(len(rows), object), 0
        for row, number in runs(rows[sort]):
            lists[sort[at : at + number]] = data[row : row + number]
            at += number
        lengths = np.fromiter(map(len, lists), np.int64, len(lists))
        ends = np.append(0, np.cumsum(lengths))
        return Events(ends[starts - starts[0]], np.concatenate(lists) if len(lists) else np.empty(0, np.uint32))

    def close(self) -> None:
        """Release the file; a later ``load`` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _positions(path: Path, file: h5py.File, n_rows: int) -> NDArray[np.int64]:
    """The place in the scan of each row, counted with the flyback."""
    if hdf5.find(file, _POSITIONS) is None:
        return np.arange(n_rows)
    positions = hdf5.small_array(path, file, _POSITIONS)
    if positions.ndim != 1 or positions.dtype.kind not in "iu" or not len(positions) or n_rows % len(positions):
        raise DataError(f"{path}: {n_rows} lists of events do not fit to scan_positions of the shape {positions.shape} {positions.dtype}")
    return np.repeat(positions.astype(np.int64), n_rows // len(positions))


def _place_rows(positions: NDArray[np.int64], lengths: NDArray[np.int64] | None) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(rows in the order of the scan, where each frame's rows begin in them, place in the scan of each frame that has electrons)."""
    kept = np.arange(len(positions)) if lengths is None else np.flatnonzero(lengths)
    order = kept[np.argsort(positions[kept], kind="stable")]
    acquired, starts = np.unique(positions[order], return_index=True)
    return order, np.append(starts, len(order)).astype(np.int64), acquired


def _lengths(path: Path, events: h5py.Dataset) -> NDArray[np.int64] | None:
    """How many events each row has, from the table of lists itself; None for files that compress or scatter it.

    Raises DataError when the lists are longer together than the file: several rows that share one list would fill the memory.
    """
    offset, n_bytes, size = events.id.get_offset(), len(events) * _LIST.itemsize, file_size(path)
    if offset is None or events.id.get_storage_size() != n_bytes or offset + n_bytes > size:
        return None
    with FileIO(path) as file:
        file.seek(offset)
        table = file.read(n_bytes)
    if len(table) != n_bytes:
        return None
    lengths = np.frombuffer(table, _LIST)["number"].astype(np.int64)
    if int(lengths.sum()) > size:
        raise DataError(f"{path}: {_FRAMES} promises {int(lengths.sum())} events, the file has {size} bytes; it is damaged")
    return lengths


def _frame_shape(path: Path, events: h5py.Dataset, warnings: list[str]) -> tuple[int, int]:
    shape = _pair(events, ("Nx", "Ny"))  # so, rows first, in stempy itself
    if shape is None:
        warnings.append(f"{path.name}: the detector's shape is not stored; {_CAMERA[0]} x {_CAMERA[1]} is assumed")
        return _CAMERA
    if max(shape) > 65536:
        raise DataError(f"{path}: a detector of {shape[0]} x {shape[1]} pixels is not possible; the file is damaged")
    if shape[0] != shape[1]:
        warnings.append(f"{path.name}: whether the detector is {shape[0]} x {shape[1]} or {shape[1]} x {shape[0]} is not certain; look at a pattern")
    return shape


def _add_scan(header: Header, scan: tuple[int, int] | None, acquired: NDArray[np.int64]) -> None:
    """Scan shape without the flyback, and which frames are there."""
    name, last = header.path.name, int(acquired[-1])
    if int(acquired[0]) < 0 or last >= 1 << 31 or (scan is not None and last >= scan[0] * scan[1]):
        said = "" if scan is None else f" of {scan[0]} x {scan[1]}"
        raise DataError(f"{header.path}: scan_positions goes from {acquired[0]} to {last} in a scan{said}; the file is damaged")
    if scan is not None:
        header.flyback = (0, 1) if scan[1] > 1 else (0, 0)
        header.scan_shape = (scan[0], scan[1] - header.flyback[1])
        header.metadata["scan_shape"] = Quantity(header.scan_shape, "", f"{name}: {_POSITIONS} @Ny, @Nx without the flyback column")
    if scan is not None and scan[0] == scan[1]:
        header.warnings.append(f"{name}: the last column of the {scan[0]} x {scan[1]} scan is taken as flyback; give scan_shape if it is not")
    if not np.array_equal(acquired, np.arange(len(acquired))):
        header.acquired = acquired


def _pair(item: Any, keys: tuple[str, str]) -> tuple[int, int] | None:
    """Two whole numbers from 1 on from attributes; None when they are not there."""
    if item is None:
        return None
    numbers = [hdf5.number(item, key) for key in keys]
    if any(n is None or n != int(n) or not 1 <= n < 1 << 31 for n in numbers):
        return None
    return int(numbers[0] or 0), int(numbers[1] or 0)
