"""Events in plain tables, in HDF5 or ``.npz``: what people convert event cameras (Timepix, 4D Camera) and sparse arrays to.

Either compressed sparse rows (CSR), sorted by frame::

    indptr   (n_frames + 1,)  events indptr[k] to indptr[k + 1] (exclusive) are those of frame k
    indices  (n_events,)      row * kx + column of the pixel
    counts   (n_events,)      what is added there (or "data"; without it 1, one electron for each event)

or a list of events in any order::

    pos, y, x  (n_events,)    number of the scan point (row * fast + column of the scan), pixel row and pixel column
    weight     (n_events,)    what is added there (without it 1)

with ``frame_shape`` = (ky, kx) and ``scan_shape`` = (slow, fast) as arrays beside them, in HDF5 also as attributes of the group or the file.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.frames import FrameSource
from ptycho.io import hdf5
from ptycho.io.event_table import CSR, LIST, SHAPES, WEIGHTS, Table, open_table
from ptycho.io.files import file_size, unreadable
from ptycho.io.options import Options
from ptycho.io.source import MAX_IN_MEMORY
from ptycho.io.sparse import ERRORS

if TYPE_CHECKING:
    import h5py

#: A table that unpacks to more times its file's size than this is no measurement.
_MAX_RATIO = 1000


def recognise_events(file: h5py.File) -> bool:
    """True when the file or one of its groups has the columns of an event table, each with one axis."""
    return _event_group(file) is not None


def open_events(path: Path, file: h5py.File, options: Options) -> FrameSource:
    """Frames of an event table in HDF5. Raises DataError when its columns or shapes do not fit together."""
    group = _event_group(file)
    if options.dataset is not None or group is None:
        return hdf5.open_generic(path, file, options)
    columns = {name: item for name in (*CSR, *LIST, *WEIGHTS) if (item := _column(file, f"{group}/{name}")) is not None}
    for data in columns.values():
        hdf5.check(path, data)
    promised, size = sum(math.prod(data.shape) * data.dtype.itemsize for data in columns.values()), file_size(path)
    if promised > _MAX_RATIO * size:
        raise DataError(f"{path}: the event table promises {promised} bytes, the file has {size}; it is damaged")
    shapes = {name: shape for name in SHAPES if (shape := _stored_shape(path, file, group, name)) is not None}
    source = _Hdf5Columns(path, file, group)
    table = Table(path, {name: (len(data), data.dtype) for name, data in columns.items()}, shapes, source.read, source.close)
    return open_table(table, options, hdf5.recipe_attributes(path.name, next(iter(columns.values()))))


def is_event_npz(path: Path) -> bool:
    """True for an ``.npz`` file with the columns of an event table; False for anything else, whatever it is."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except ERRORS:
        return False
    return any({f"{name}.npy" for name in kind} <= names for kind in (CSR, LIST))


def open_event_npz(path: Path, options: Options) -> FrameSource:
    """Frames of an event table in ``.npz``; also of a scipy.sparse.save_npz file to which frame_shape was added.

    Raises DataError when its columns or shapes do not fit together.
    """
    file_size(path)
    if options.dataset is not None:
        raise DataError(f"{path}: this is an event table; remove ::{options.dataset}")
    try:
        with zipfile.ZipFile(path) as archive:
            wanted = [name for name in (*CSR, *LIST, *WEIGHTS, *SHAPES) if f"{name}.npy" in archive.namelist()]
            found = {name: _member_header(path, archive, name) for name in wanted}
            shapes = {name: _member(path, name) for name in SHAPES if name in found and found[name][0] == (2,)}
            kind = _member(path, "format") if _is_short(archive, "format.npy") else None
    except ERRORS as error:
        raise unreadable(path, error, "not an .npz file") from None
    if kind is not None and kind.dtype.kind in "SU" and kind.size == 1 and str(kind.astype("U16").item()) != "csr":
        raise DataError(f"{path}: a sparse array of the format {str(kind.astype('U16').item())!r}; convert it with tocsr()")
    columns = {name: (shape[0], dtype) for name, (shape, dtype) in found.items() if name not in SHAPES and len(shape) == 1}
    if sum(length * dtype.itemsize for length, dtype in columns.values()) > MAX_IN_MEMORY:
        raise DataError(f"{path}: this table is too large to be unpacked in memory; save it as HDF5")
    source = _NpzColumns(path)
    return open_table(Table(path, columns, shapes, source.read, source.close), options, {})


class _Hdf5Columns:
    """Columns of one group, read in parts."""

    def __init__(self, path: Path, file: h5py.File, group: str) -> None:
        self._path, self._group = path, group
        self._file: h5py.File | None = file

    def read(self, name: str, first: int, last: int) -> NDArray[Any]:
        if self._file is None:
            self._file = hdf5.open_file(self._path)
        return np.asarray(hdf5.find(self._file, f"{self._group}/{name}")[first:last])

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class _NpzColumns:
    """Columns of an archive; each is unpacked as a whole when it is first needed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns: dict[str, NDArray[Any]] = {}

    def read(self, name: str, first: int, last: int) -> NDArray[Any]:
        if name not in self._columns:
            self._columns[name] = _member(self._path, name)
        return self._columns[name][first:last]

    def close(self) -> None:
        self._columns.clear()


# What is in the file


def _event_group(file: h5py.File) -> str | None:
    """ "" or the name of the group that has the columns."""
    import h5py

    groups = [name for name in list(file)[:100] if isinstance(file.get(name, getlink=True), h5py.HardLink) and isinstance(file[name], h5py.Group)]
    for group in ["", *groups]:
        for kind in (CSR, LIST):
            columns = [_column(file, f"{group}/{name}") for name in kind]
            if all(data is not None and data.dtype.kind in "iu" for data in columns):
                return group
    return None


def _column(file: h5py.File, name: str) -> h5py.Dataset | None:
    import h5py

    data = hdf5.find(file, name)
    return data if isinstance(data, h5py.Dataset) and data.ndim == 1 and data.dtype.kind in "biuf" else None


def _stored_shape(path: Path, file: h5py.File, group: str, name: str) -> NDArray[Any] | None:
    """Two numbers from a dataset or an attribute of the group, else of the file."""
    for place in dict.fromkeys([group, ""]):
        data = _column(file, f"{place}/{name}")
        if data is not None and data.shape == (2,):
            return hdf5.small_array(path, file, f"{place}/{name}")
        attributes = hdf5.find(file, place).attrs
        if name in attributes:
            return np.asarray(attributes[name])
    return None


def _is_short(archive: zipfile.ZipFile, member: str) -> bool:
    return member in archive.namelist() and archive.getinfo(member).file_size < 4096


def _member_header(path: Path, archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """(shape, type) of an array whose size is what the archive's directory says."""
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as member:
        try:
            version = np.lib.format.read_magic(member)
            reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = reader(member)
        except Exception as error:  # NumPy evaluates the header as Python text, which fails in many ways
            raise ValueError(f"the header of {name} is damaged: {error}") from None
        promised = math.prod(shape) * dtype.itemsize + member.tell()
    if promised != info.file_size or promised > _MAX_RATIO * file_size(path) or min(shape, default=0) < 0:
        raise DataError(f"{path}::{name}: the header promises {promised} bytes, the archive has {info.file_size}; is it damaged?")
    return shape, dtype


def _member(path: Path, name: str) -> NDArray[Any]:
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
        return np.lib.format.read_array(member, allow_pickle=False)
