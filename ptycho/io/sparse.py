"""Frames stored as lists of events: which pixels were hit, frame after frame. Only the frames that are asked for are made dense."""

from __future__ import annotations

import threading
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.frames import Header
from ptycho.io import hdf5
from ptycho.io.files import unreadable
from ptycho.io.source import MAX_IN_MEMORY

#: Type of frames that are counts of single electrons.
COUNTS = np.dtype(np.uint16)

#: What h5py, zipfile and NumPy raise of a damaged file.
ERRORS = (*hdf5.ERRORS, EOFError, IndexError, NotImplementedError, MemoryError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, eq=False)
class Events:
    """Compressed sparse rows (CSR) of consecutive frames.

    Frame k has the events ``indptr[k]`` to ``indptr[k + 1]`` (exclusive): ``indices`` = row * kx + column of the pixel, and ``weights``,
    what is added to that pixel (None: 1, one electron). A pixel that is named twice gets both.
    """

    indptr: NDArray[np.integer[Any]]
    indices: NDArray[np.integer[Any]]
    weights: NDArray[Any] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all three arrays."""
        return self.indptr.nbytes + self.indices.nbytes + (0 if self.weights is None else self.weights.nbytes)


class CsrSource:
    """Dense frames from events, which are read block by block when their frames are first asked for. Implements FrameSource."""

    def __init__(self, header: Header, load: Callable[[int, int], Events], block_frames: int, close: Callable[[], None]) -> None:
        """``load(first, last)`` reads the events of frames first to last - 1; it is called by one thread at a time."""
        self.header = header
        self._load = load
        self._block_frames = block_frames
        self._close = close
        self._blocks: dict[int, Events] = {}
        self._lock = threading.Lock()

    def read(self, frames: NDArray[np.int64]) -> NDArray[Any]:
        """Frames (n, ky, kx), dense. Raises DataError for events that cannot be read or lie outside of the detector."""
        frames = np.asarray(frames, np.int64)
        ky, kx = self.header.frame_shape
        try:
            out = np.zeros((len(frames), ky * kx), self.header.dtype)
            block, within = np.divmod(frames, self._block_frames)
            for number in np.unique(block).tolist():
                events = self._block(number)
                for place in np.flatnonzero(block == number):
                    _add_events(out[place], events, int(within[place]))
        except ERRORS as error:
            raise unreadable(self.header.path, error, "events cannot be read") from None
        return out.reshape(-1, ky, kx)

    def _block(self, number: int) -> Events:
        with self._lock:
            if number not in self._blocks:
                first = number * self._block_frames
                last = min(first + self._block_frames, self.header.n_frames)
                events = self._load(first, last)
                _check(self.header, events, first, last)
                if events.nbytes + sum(block.nbytes for block in self._blocks.values()) > MAX_IN_MEMORY:
                    self._blocks.clear()
                self._blocks[number] = events
            return self._blocks[number]

    def close(self) -> None:
        """Forget the events and release the file; a later read opens it again."""
        with self._lock:
            self._blocks.clear()
            self._close()


def _add_events(pixels: NDArray[Any], events: Events, frame: int) -> None:
    """Add one frame's events to its flat pixels."""
    part = slice(int(events.indptr[frame]), int(events.indptr[frame + 1]))
    # With values of the pixels' own type this is 10 times faster than with Python's numbers.
    values = pixels.dtype.type(1) if events.weights is None else events.weights[part].astype(pixels.dtype, copy=False)
    np.add.at(pixels, events.indices[part].astype(np.intp), values)


def _check(header: Header, events: Events, first: int, last: int) -> None:
    """Raise DataError unless the events are those of frames first to last - 1 and of pixels of the detector."""
    indptr, indices = events.indptr, events.indices
    if len(indptr) != last - first + 1 or int(indptr[0]) < 0 or int(indptr[-1]) > len(indices) or np.any(indptr[1:] < indptr[:-1]):
        raise DataError(f"{header.path}: the table of where each frame's events begin is damaged near frame {first}")
    ky, kx = header.frame_shape
    outside = (indices < 0) | (indices >= ky * kx)
    if outside.any():
        place = int(np.argmax(outside))
        frame = first + int(np.searchsorted(indptr, place, "right")) - 1
        raise DataError(f"{header.path}: an event of frame {frame} is at pixel {indices[place]}; the detector has {ky} x {kx} pixels. Is it damaged?")
    _check_range(header, events, first)


def _check_range(header: Header, events: Events, first: int) -> None:
    """Raise DataError for a pixel whose sum of events is more than its type can hold."""
    if header.dtype.kind not in "iu":
        return
    largest = int(np.iinfo(header.dtype).max)
    if events.weights is None:
        totals = np.diff(events.indptr)
    else:
        if header.dtype.kind == "u" and events.weights.dtype.kind == "i" and np.any(events.weights < 0):
            raise DataError(f"{header.path}: the events near frame {first} have negative weights")
        totals = np.diff(np.append(0.0, np.cumsum(np.abs(events.weights.astype(np.float64))))[events.indptr])
    for frame in np.flatnonzero(totals > largest):
        part = slice(int(events.indptr[frame]), int(events.indptr[frame + 1]))
        hit, place = np.unique(events.indices[part], return_inverse=True)
        weights = None if events.weights is None else np.abs(events.weights[part].astype(np.float64))
        most = np.bincount(place, weights, len(hit)).max()
        if most > largest:
            raise DataError(f"{header.path}: a pixel of frame {first + frame} has {most:.0f} counts; {header.dtype} holds at most {largest}")
