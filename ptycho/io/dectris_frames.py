"""Frames that lie in several HDF5 files of one acquisition, one after another: the data files of DECTRIS detectors."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.frames import Header
from ptycho.io import hdf5
from ptycho.io.files import unreadable
from ptycho.io.hdf5_chunks import ChunkCheck
from ptycho.io.source import gather

if TYPE_CHECKING:
    import h5py

#: Data files that are kept open; a process may open 256 on some systems.
_MAX_OPEN = 150
_MAX_FRAME_BYTES = 1 << 28
_MAX_FRAMES = 1 << 26


@dataclass(frozen=True, eq=False)
class DataFile:
    """One data file, looked at but closed: ``first`` and ``last`` are the image numbers it gives itself, counted from 1, or None."""

    path: Path
    dataset: str
    n_frames: int
    n_channels: int
    frame_shape: tuple[int, int]
    dtype: np.dtype[Any]
    first: int | None
    last: int | None


def look_at(path: Path, dataset: str) -> DataFile:
    """What one data file holds, with no pixel read. Raises DataError when it is damaged, or its data are in yet another file."""
    file = hdf5.open_file(path)
    try:
        data = _checked(path, file, dataset)
        shape = data.shape if data.ndim == 3 else (data.shape[0], *data.shape[2:])
        return DataFile(
            path, data.name, _written(path, data), data.shape[1] if data.ndim == 4 else 1, (shape[1], shape[2]), data.dtype,
            _whole(data, "image_nr_low"), _whole(data, "image_nr_high"),
        )  # fmt: skip
    except hdf5.ERRORS as error:
        raise unreadable(path, error) from None
    finally:
        file.close()


def _checked(path: Path, file: h5py.File, dataset: str) -> h5py.Dataset:
    """The dataset (n, ky, kx) or (n, channel, ky, kx), in this very file."""
    data = file[hdf5.resolve(path, file, dataset)]
    if data.is_virtual or data.external:
        raise DataError(f"{path}: {data.name[-40:]} is put together from other places; open the data files themselves")
    hdf5.check(path, data)
    if data.ndim not in (3, 4) or data.dtype.kind not in "iuf" or min(data.shape[1:]) < 1:
        raise DataError(f"{path}: {data.name[-40:]} has the shape {data.shape} and type {data.dtype}; frames (n, ky, kx) of real numbers are needed")
    if math.prod(data.shape[-2:]) * data.dtype.itemsize > _MAX_FRAME_BYTES or data.shape[0] > _MAX_FRAMES:
        raise DataError(f"{path}: {data.name[-40:]} claims the shape {data.shape}, more than any detector gives; the file is damaged")
    return data


def _written(path: Path, data: h5py.Dataset) -> int:
    """The number of frames that the file really has: an interrupted program leaves a shape without data."""
    n_frames = int(data.shape[0])
    if data.chunks is None:
        return min(n_frames, data.id.get_storage_size() // (math.prod(data.shape[1:]) * data.dtype.itemsize))
    chunks_per_row = math.prod(-(-size // chunk) for size, chunk in zip(data.shape[1:], data.chunks[1:], strict=True))
    return min(n_frames, data.id.get_num_chunks() // chunks_per_row * data.chunks[0])


def _whole(data: h5py.Dataset, key: str) -> int | None:
    value = hdf5.number(data, key)
    return None if value is None or value != int(value) or not 1 <= value < 1 << 40 else int(value)


class DataFilesSource:
    """Frames of several data files, one after another, as one list. Implements FrameSource; files stay open until ``close``."""

    def __init__(self, header: Header, files: Sequence[DataFile]) -> None:
        """``files`` have the frame shape and type of ``header`` and its number of frames together."""
        self.header = header
        self.files = tuple(files)
        self._starts = np.cumsum([0, *(file.n_frames for file in self.files)])
        self._open: dict[int, tuple[h5py.Dataset, ChunkCheck]] = {}
        self._lock = threading.Lock()

    def read(self, frames: NDArray[np.int64]) -> NDArray[Any]:
        """Frames (n, ky, kx) as stored. Raises DataError naming the data file that cannot be read or unpacked."""
        header, frames = self.header, np.asarray(frames, np.int64)
        if frames.size and not 0 <= frames.min() <= frames.max() < header.n_frames:
            raise DataError(f"{header.path}: frames {frames.min()} to {frames.max()} of {header.n_frames} were asked for")
        # h5py does one thing at a time in any case.
        with self._lock:
            return gather(frames, header.frame_shape, header.dtype, self._read_run)

    def _read_run(self, first: int, out: NDArray[Any]) -> None:
        """Consecutive frames, one read for each data file."""
        done = 0
        while done < len(out):
            k = int(np.searchsorted(self._starts, first + done, side="right")) - 1
            at = first + done - int(self._starts[k])
            number = min(self.files[k].n_frames - at, len(out) - done)
            try:
                data, chunks = self._data(k)
                chunks.check(at, number)
                out[done : done + number] = data[at : at + number] if data.ndim == 3 else data[at : at + number, 0]
            except hdf5.ERRORS as error:
                raise unreadable(self.files[k].path, error, f"frames {at} to {at + number - 1} cannot be read") from None
            done += number

    def _data(self, k: int) -> tuple[h5py.Dataset, ChunkCheck]:
        """The dataset of data file ``k``, which is opened when it is not."""
        if k not in self._open:
            if len(self._open) >= _MAX_OPEN:
                # The one opened last, not first: batches go through the files in order, and come back to the first ones.
                self._open.popitem()[1][0].file.close()
            self._open[k] = self._opened(self.files[k])
        return self._open[k]

    def _opened(self, known: DataFile) -> tuple[h5py.Dataset, ChunkCheck]:
        file = hdf5.open_file(known.path)
        try:
            data = _checked(known.path, file, known.dataset)
            if data.shape[0] < known.n_frames or data.shape[-2:] != known.frame_shape or data.dtype != known.dtype:
                raise DataError(f"{known.path}: the file has changed since it was opened; read the acquisition again")
            one_chunk = 0 if data.chunks is None or data.chunks[0] == 1 else math.prod(data.chunks) * data.dtype.itemsize
            del data  # HDF5 gives one cache to all who have a dataset open
            data = _with_cache(file, known.dataset, one_chunk)
            return data, ChunkCheck(known.path, data)
        except BaseException:
            file.close()
            raise

    def close(self) -> None:
        """Release the files; a later read opens them again."""
        with self._lock:
            while self._open:
                self._open.popitem()[1][0].file.close()


def _with_cache(file: h5py.File, dataset: str, n_bytes: int) -> h5py.Dataset:
    """A dataset that keeps ``n_bytes`` of unpacked chunks. None are needed where chunks are frames: a hundred files would hold gigabytes."""
    import h5py

    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    access.set_chunk_cache(521, n_bytes, 1.0)
    return h5py.Dataset(h5py.h5d.open(file.id, dataset.encode(), access))
