"""What all readers share: frames at fixed places in a file, and frames in memory."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.frames import Header
from ptycho.io.files import unreadable

#: What must be read at once may take this many bytes.
MAX_IN_MEMORY = 8 << 30
_MAX_PIXELS = 65536
_MAX_FRAMES = 1 << 26


def runs(frames: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """(first, number) of every run of consecutive numbers in sorted, distinct frames."""
    ends = np.flatnonzero(np.diff(frames) != 1) + 1
    for run in np.split(frames, ends):
        if len(run):
            yield int(run[0]), len(run)


def gather(
    frames: NDArray[np.int64],
    frame_shape: tuple[int, int],
    dtype: np.dtype[Any],
    read_run: Callable[[int, NDArray[Any]], None],
) -> NDArray[Any]:
    """Frames (n, ky, kx) in the order asked for, read in the order of the file: ``read_run(first, out)`` fills consecutive ones."""
    frames = np.asarray(frames, np.int64)
    if len(frames) and (np.diff(frames) == 1).all():  # the usual case, without sorting
        out = np.empty((len(frames), *frame_shape), dtype)
        read_run(int(frames[0]), out)
        return out
    distinct, back = np.unique(frames, return_inverse=True)
    out = np.empty((len(distinct), *frame_shape), dtype)
    at = 0
    for first, number in runs(distinct):
        read_run(first, out[at : at + number])
        at += number
    return out if np.array_equal(distinct, frames) else out[back.reshape(-1)]


class BinarySource:
    """Frames of one type and size, ``stride`` bytes apart, in a plain file. Implements FrameSource."""

    def __init__(
        self, header: Header, offset: int = 0, stride: int | None = None, *, stored: np.dtype[Any] | None = None, column_major: bool = False
    ) -> None:
        """``offset`` of the first pixel and ``stride`` are in bytes; frames touch each other by default.

        ``stored`` is the type in the file when it is not ``header.dtype`` (other byte order), ``column_major`` that of frames written so.
        """
        self.header = header
        self._stored = stored or header.dtype
        self._places = (offset, stride or header.frame_bytes, header.frame_bytes)
        self._column_major = column_major

    def read(self, frames: NDArray[np.int64]) -> NDArray[Any]:
        """Frames (n, ky, kx) as stored. Raises DataError with the byte where the file ends too early."""
        header = self.header
        try:
            # Reads of a file that is opened each time, not a memory map: a map of a file that shrinks kills the process.
            with FileIO(header.path) as file:
                return gather(frames, header.frame_shape, header.dtype, partial(self._read_run, file))
        except (OSError, ValueError, OverflowError) as error:
            raise unreadable(header.path, error) from None

    def _read_run(self, file: FileIO, first: int, out: NDArray[Any]) -> None:
        """Consecutive frames in one read, from the first byte of the first to the last of the last."""
        if self._stored == out.dtype and not self._column_major:
            read_strided(file, self.header.path, self._places, first, out)
            return
        n, ky, kx = out.shape
        as_stored = np.empty((n, kx, ky) if self._column_major else out.shape, self._stored)
        read_strided(file, self.header.path, self._places, first, as_stored)
        out[:] = as_stored.swapaxes(1, 2) if self._column_major else as_stored

    def close(self) -> None:
        """Nothing to release: the file is open only while it is read."""


def read_strided(file: FileIO, path: Path, places: tuple[int, int, int], first: int, out: NDArray[Any]) -> None:
    """Fill ``out`` (n, ...) with records ``first`` and on, of ``places`` = (offset of the first, stride, bytes of each that count)."""
    offset, stride, used_bytes = places
    wanted = (len(out) - 1) * stride + used_bytes
    start, done = offset + first * stride, 0
    # Records that touch each other need no copy: they are read to where they belong.
    direct = stride == used_bytes and out.flags.c_contiguous and out.nbytes == wanted
    buffer = out.reshape(-1).view(np.uint8) if direct else np.empty(len(out) * stride, np.uint8)
    view = memoryview(buffer)  # type: ignore[arg-type]
    file.seek(start)
    while done < wanted:
        got = file.readinto(view[done:wanted])
        if not got:
            raise DataError(f"{path}: the file ends at byte {start + done}, in frame {first + done // stride}; has it been cut?")
        done += got
    if not direct:
        used = buffer.reshape(len(out), stride)[:, :used_bytes]
        out[:] = np.ascontiguousarray(used).view(out.dtype).reshape(out.shape)


class ArraySource:
    """Frames of an array in memory. Implements FrameSource."""

    def __init__(self, array: NDArray[Any], path: Path = Path("array"), format: str = "array") -> None:
        """``array`` is (slow, fast, ky, kx) or (n, ky, kx), real. Raises DataError for anything else."""
        self.header = stack_header(path, format, array.shape, array.dtype)
        self._frames = array.reshape(-1, *self.header.frame_shape)

    def read(self, frames: NDArray[np.int64]) -> NDArray[Any]:
        """Frames (n, ky, kx) as stored, a copy."""
        return self._frames[np.asarray(frames, np.int64)]

    def close(self) -> None:
        """Nothing to release."""


class LateSource:
    """Frames of a file whose layout allows no random access: it is read at once, when the first frame is asked for. Implements FrameSource."""

    def __init__(self, header: Header, load: Callable[[], NDArray[Any]]) -> None:
        """``load`` gives all frames (n, ky, kx) or (slow, fast, ky, kx). Raises DataError when they would take more than ``MAX_IN_MEMORY``."""
        self.header = header
        n_bytes = header.n_frames * header.frame_bytes
        if n_bytes > MAX_IN_MEMORY:
            size = f"{n_bytes / 1e9:.1f} GB"
            raise DataError(f"{header.path}: this layout must be read at once and takes {size}; save it as .npy in C order or as HDF5")
        self._load = load
        self._frames: NDArray[Any] | None = None
        self._lock = threading.Lock()

    def read(self, frames: NDArray[np.int64]) -> NDArray[Any]:
        """Frames (n, ky, kx) as stored, a copy."""
        with self._lock:
            if self._frames is None:
                self._frames = self._load().reshape(self.header.n_frames, *self.header.frame_shape)
        return self._frames[np.asarray(frames, np.int64)]

    def close(self) -> None:
        """Forget the frames; a later read loads them again."""
        self._frames = None


def stack_header(path: Path, format: str, shape: tuple[int, ...], dtype: np.dtype[Any], name: str = "") -> Header:
    """The header of an array (slow, fast, ky, kx) or (n, ky, kx). Raises DataError unless it is a stack of real images."""
    scan_shape, n_frames, frame_shape = stack_shape(shape, dtype, name or str(path))
    return Header(path, format, n_frames, frame_shape, np.dtype(dtype), scan_shape)


def stack_shape(shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> tuple[tuple[int, int] | None, int, tuple[int, int]]:
    """(scan shape or None, number of frames, frame shape) of an array. Raises DataError unless it is a stack of real images."""
    if dtype.kind not in "biuf":
        raise DataError(f"{name}: values of type {dtype} cannot be diffraction patterns; real numbers are needed")
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise DataError(f"{name}: the array has the shape {shape}; (scan_y, scan_x, ky, kx) or (n, ky, kx) is needed")
    *scan, height, width = (int(n) for n in shape)
    if max(height, width) > _MAX_PIXELS:
        raise DataError(f"{name}: patterns of {height} x {width} pixels; no detector has more than {_MAX_PIXELS} on a side")
    if math.prod(scan) > _MAX_FRAMES:
        raise DataError(f"{name}: {math.prod(scan):.3g} patterns, by its shape; no scan has more than {_MAX_FRAMES}: the file is damaged")
    return (scan[0], scan[1]) if len(scan) == 2 else None, math.prod(scan), (height, width)
