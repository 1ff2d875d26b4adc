"""NumPy files: ``.npy`` and ``.npz``. Arrays are (slow, fast, ky, kx) or (n, ky, kx), read lazily where the layout allows."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ptycho.data import FrameSource
from ptycho.errors import DataError
from ptycho.io.source import ArraySource, BinarySource, file_size, stack_shape, unreadable

_MAX_IN_MEMORY = 8 << 30


def open_npy(path: Path, dataset: str | None = None) -> FrameSource:
    """Frames of an ``.npy`` file. Raises DataError for other files, object arrays and wrong shapes."""
    size = file_size(path)
    if dataset is not None:
        raise DataError(f"{path}: an .npy file has no datasets; remove ::{dataset}")
    try:
        with open(path, "rb") as file:
            shape, fortran, dtype = _read_header(file)
            offset = file.tell()
    except (OSError, ValueError) as error:
        raise unreadable(path, error, "not a NumPy file") from None
    return _source(path, "npy", shape, fortran, dtype, offset, size)


def open_npz(path: Path, dataset: str | None = None) -> FrameSource:
    """Frames of one array of an ``.npz`` file: ``dataset``, else the only stack of images in it."""
    size = file_size(path)
    try:
        with zipfile.ZipFile(path) as archive:
            headers = {}
            for info in archive.infolist():
                if info.filename.endswith(".npy"):
                    with archive.open(info) as member:
                        headers[info.filename[:-4]] = (info, *_read_header(member), member.tell())  # type: ignore[arg-type]
            name = _choose(path, {name: (header[1], header[3]) for name, header in headers.items()}, dataset)
            info, shape, fortran, dtype, header_bytes = headers[name]
            if info.compress_type != zipfile.ZIP_STORED:
                return _unpacked(path, archive, info, name, shape, dtype)
    except (OSError, ValueError, EOFError, KeyError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise unreadable(path, error, "not an .npz file") from None
    return _source(path, "npz", shape, fortran, dtype, _data_offset(path, info) + header_bytes, size, f"{path}::{name}")


def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """(shape, Fortran order, type) at the start of an .npy stream; NumPy caps its length."""
    try:
        version = np.lib.format.read_magic(file)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return reader(file)
    except Exception as error:  # NumPy evaluates the header as Python text, which fails in many ways
        raise ValueError(f"its header is damaged: {error}") from None


def _source(
    path: Path, format: str, shape: tuple[int, ...], fortran: bool, dtype: np.dtype[Any], offset: int, size: int, name: str = ""
) -> FrameSource:
    scan_shape, n_frames, frame_shape = stack_shape(shape, dtype, name or str(path))
    needed = offset + n_frames * frame_shape[0] * frame_shape[1] * dtype.itemsize
    if needed > size:
        raise DataError(f"{name or path}: the header promises {needed} bytes, the file has {size}; has it been cut?")
    if fortran:
        return _fortran(path, format, shape, dtype, offset)
    source = BinarySource(path, format, n_frames, frame_shape, dtype, offset)
    source.scan_shape = scan_shape
    return source


def _fortran(path: Path, format: str, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int) -> FrameSource:
    """A pattern of a Fortran-ordered array lies all over the file, so that it is read at once."""
    number = math.prod(shape)
    _check_memory(path, number * dtype.itemsize)
    try:
        flat = np.fromfile(path, dtype, number, offset=offset)
    except OSError as error:
        raise unreadable(path, error) from None
    return ArraySource(np.ascontiguousarray(flat.reshape(shape, order="F")), path, format)


def _unpacked(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> FrameSource:
    stack_shape(shape, dtype, f"{path}::{name}")
    _check_memory(path, max(info.file_size, math.prod(shape) * dtype.itemsize))
    with archive.open(info) as member:
        return ArraySource(np.lib.format.read_array(member, allow_pickle=False), path, "npz")


def _check_memory(path: Path, n_bytes: int) -> None:
    if n_bytes > _MAX_IN_MEMORY:
        raise DataError(f"{path}: this layout must be read at once and takes {n_bytes / 1e9:.1f} GB; save it as .npy in C order")


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a stored member begins: after its local header, whose variable parts may differ from the directory's."""
    try:
        with open(path, "rb") as file:
            file.seek(info.header_offset + 26)
            name_length, extra_length = struct.unpack("<HH", file.read(4))
    except (OSError, struct.error) as error:
        raise unreadable(path, error, "not an .npz file") from None
    return int(info.header_offset + 30 + name_length + extra_length)


def _choose(path: Path, arrays: dict[str, tuple[tuple[int, ...], np.dtype[Any]]], dataset: str | None) -> str:
    found = ", ".join(f"{name} {shape} {dtype}" for name, (shape, dtype) in arrays.items()) or "no arrays"
    if dataset is not None:
        if dataset not in arrays:
            raise DataError(f"{path}: there is no array {dataset!r}; the file has {found}")
        return dataset
    stacks = [name for name, (shape, dtype) in arrays.items() if len(shape) in (3, 4) and dtype.kind in "biuf"]
    stacks = [name for name in stacks if len(arrays[name][0]) == 4] or stacks
    if len(stacks) != 1:
        raise DataError(f"{path}: which array holds the patterns? The file has {found}; write {path.name}::NAME")
    return stacks[0]
