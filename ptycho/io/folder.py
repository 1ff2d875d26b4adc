"""A folder with one file per pattern, or per few patterns, in natural order of the names: "p2" comes before "p10".

Names that all end with ``x003_y017`` are places in the scan: they are in the order of y, then x.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.frames import FrameSource, Header, Quantity
from ptycho.io.files import natural_order, unreadable
from ptycho.io.matlab import open_mat_frame
from ptycho.io.numpy_file import open_npy_frames
from ptycho.io.options import Options
from ptycho.io.raw import open_raw, set_scan_shape, shape_in_name
from ptycho.io.tiff import open_tiff

_OPENERS = {
    ".tif": open_tiff, ".tiff": open_tiff, ".npy": open_npy_frames, ".mat": open_mat_frame,
    ".dat": open_raw, ".raw": open_raw, ".bin": open_raw,
}  # fmt: skip
#: Share of the numbers between the first and the last name that must be there for gaps to mean missing patterns.
_PRESENT = 0.9


def open_folder(path: Path, options: Options) -> FrameSource:
    """Frames of the files of the commonest known suffix in a folder. Raises DataError when there are none, or when their shapes differ.

    Only the headers of the first, the middle and the last file are read here; the others are compared when they are read.
    """
    warnings: list[str] = []
    files = _files(path, warnings)
    first, *others = [_open(files[i], options) for i in sorted({0, len(files) // 2, len(files) - 1})]
    for other in others:
        _compare(first.header, other.header)
    per_file = first.header.n_frames
    like = first.header
    header = Header(path, "folder", len(files) * per_file, like.frame_shape, like.dtype, metadata=dict(like.metadata), warnings=warnings)
    header.metadata.pop("scan_shape", None)
    header.warnings += like.warnings
    header.flip_rows, header.bad_pixels, header.saturation = like.flip_rows, like.bad_pixels, like.saturation
    _add_scan(header, files, per_file)
    return FolderSource(header, files, per_file, options)


class FolderSource:
    """Frames of many files with ``per_file`` frames each; a file is open only while it is read. Implements FrameSource."""

    def __init__(self, header: Header, files: list[Path], per_file: int, options: Options) -> None:
        """``header.n_frames`` is ``per_file`` times the number of files."""
        self.header = header
        self._files = files
        self._per_file = per_file
        self._options = options

    def read(self, frames: NDArray[np.int64]) -> NDArray[Any]:
        """Frames (n, ky, kx) in the order asked for. Raises DataError naming the file that cannot be read, or is unlike the first."""
        frames = np.asarray(frames, np.int64)
        if frames.size and not 0 <= frames.min() <= frames.max() < self.header.n_frames:
            raise DataError(f"{self.header.path}: there are {self.header.n_frames} frames; {frames.min()} to {frames.max()} were asked for")
        out = np.empty((len(frames), *self.header.frame_shape), self.header.dtype)
        numbers = frames // self._per_file
        order = np.argsort(numbers, kind="stable")
        for places in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1):
            if len(places):
                out[places] = self._read_file(self._files[numbers[places[0]]], frames[places] % self._per_file)
        return out

    def _read_file(self, file: Path, frames: NDArray[np.int64]) -> NDArray[Any]:
        source = _open(file, self._options)
        try:
            _compare(self.header, source.header, self._per_file)
            return source.read(frames)
        finally:
            source.close()

    def close(self) -> None:
        """Nothing to release: files are open only while they are read."""


def _open(file: Path, options: Options) -> FrameSource:
    return _OPENERS[file.suffix.lower()](file, options)


def _files(path: Path, warnings: list[str]) -> list[Path]:
    """Files of the commonest known suffix in natural order; hidden files are passed over."""
    try:
        with os.scandir(path) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file()]
    except (OSError, ValueError) as error:
        raise unreadable(path, error, "the folder cannot be listed") from None
    found = Counter(suffix for suffix in map(_suffix, names) if suffix in _OPENERS)
    if not found:
        raise DataError(f"{path}: no patterns in this folder; files with the suffix {', '.join(_OPENERS)} are read, or name a file")
    suffix, number = found.most_common(1)[0]
    if len(names) > number:
        others = sorted(name for name in names if _suffix(name) != suffix)
        warnings.append(f"{path.name}: {number} {suffix} files are read; {len(others)} others are left out ({others[0][:60]})")
    files = sorted((path / name for name in names if _suffix(name) == suffix), key=natural_order)
    places = _places(files)
    return files if places is None else [files[i] for i in np.lexsort((places[:, 1], places[:, 0]))]


def _places(files: list[Path]) -> NDArray[np.int64] | None:
    """(n, 2) = row and column of the scan from names that end with ``x003_y017``, counted from 0; None when one does not."""
    ends = [re.search(r"x(\d{1,6})_y(\d{1,6})$", file.stem, re.ASCII) for file in files]
    found = [(int(end[2]), int(end[1])) for end in ends if end is not None]
    if len(found) < len(files) or len(set(found)) < len(found):
        return None
    return np.stack([np.unique(column, return_inverse=True)[1] for column in np.array(found, np.int64).T], 1)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _compare(first: Header, other: Header, per_file: int | None = None) -> None:
    """Raise DataError unless ``other`` has as many frames, of the same shape and type."""
    wanted = (per_file or first.n_frames, *first.frame_shape)
    found = (other.n_frames, *other.frame_shape)
    if found != wanted or other.dtype != first.dtype:
        raise DataError(
            f"{other.path}: {found} {other.dtype} (frames, ky, kx), the first file has {wanted} {first.dtype}; move files that are unlike elsewhere"
        )


def _add_scan(header: Header, files: list[Path], per_file: int) -> None:
    """The scan shape in the folder's name, and which frames the numbers in the files' names leave out."""
    places = _places(files)
    if places is not None and per_file == 1 and len(files) > 1:
        slow, fast = (int(n) + 1 for n in places.max(0))
        header.scan_shape = (slow, fast)
        header.metadata["scan_shape"] = Quantity((slow, fast), "", "names of the files")
        if len(files) < slow * fast:
            header.acquired = places @ np.array([fast, 1])
            header.warnings.append(f"{header.path.name}: {slow * fast - len(files)} files of a scan of {slow} x {fast} are missing")
        return
    numbers = _numbers(files)
    if numbers is not None and len(numbers) < numbers[-1] + 1:
        missing = int(numbers[-1]) + 1 - len(numbers)
        header.acquired = (numbers[:, None] * per_file + np.arange(per_file)).ravel()
        header.warnings.append(f"{header.path.name}: the numbers in the names leave out {missing} files; their scan points have no pattern")
        shape = shape_in_name(header.path)
        if shape is not None and header.acquired[-1] < shape[0] * shape[1]:
            header.scan_shape = shape
            header.metadata["scan_shape"] = Quantity(shape, "", "name of the folder")
        return
    set_scan_shape(header, shape_in_name(header.path), "name of the folder")


def _numbers(files: list[Path]) -> NDArray[np.int64] | None:
    """Number of each file counted from the first, from the digits that its name ends with; None when they do not count the files."""
    ends = [re.search(r"(\d{1,15})$", file.stem, re.ASCII) for file in files]
    found = [int(end[1]) for end in ends if end is not None]
    if len(found) < len(files) or len(files) < 2:
        return None
    numbers = np.array(found, np.int64) - found[0]
    rising = bool((np.diff(numbers) > 0).all())
    return numbers if rising and len(numbers) >= _PRESENT * (numbers[-1] + 1) else None
