"""NumPy files: ``.npy`` and ``.npz``. Arrays are (slow, fast, ky, kx) or (n, ky, kx), read lazily where the layout allows."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.frames import FrameSource
from ptycho.io.files import file_size, unreadable
from ptycho.io.options import Options
from ptycho.io.source import BinarySource, LateSource, stack_header

_ERRORS = (OSError, ValueError, EOFError, KeyError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)


def open_npy(path: Path, options: Options) -> FrameSource:
    """Frames of an ``.npy`` file. Raises DataError for other files, object arrays and wrong shapes."""
    size = file_size(path)
    if options.dataset is not None:
        raise DataError(f"{path}: an .npy file has no datasets; remove ::{options.dataset}")
    try:
        with open(path, "rb") as file:
            shape, fortran, dtype = _read_header(file)
            offset = file.tell()
    except (OSError, ValueError) as error:
        raise unreadable(path, error, "not a NumPy file") from None
    return _source(path, "npy", shape, fortran, dtype, offset, size)


def open_npz(path: Path, options: Options) -> FrameSource:
    """Frames of one array of an ``.npz`` file: ``dataset``, else the only stack of images in it."""
    size = file_size(path)
    try:
        with zipfile.ZipFile(path) as archive:
            headers = {}
            for info in archive.infolist():
                if info.filename.endswith(".npy"):
                    with archive.open(info) as member:
                        headers[info.filename[:-4]] = (info, *_read_header(member), member.tell())  # type: ignore[arg-type]
            name = _choose(path, {name: (header[1], header[3]) for name, header in headers.items()}, options.dataset)
            info, shape, fortran, dtype, header_bytes = headers[name]
            if info.compress_type != zipfile.ZIP_STORED:
                return _unpacked(path, info, name, shape, dtype)
    except _ERRORS as error:
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
    header = stack_header(path, format, shape, dtype, name)
    needed = offset + header.n_frames * header.frame_bytes
    if needed > size:
        raise DataError(f"{name or path}: the header promises {needed} bytes, the file has {size}; has it been cut?")
    if fortran:
        # A pattern of a Fortran-ordered array lies all over the file.
        return LateSource(header, partial(_load_fortran, path, shape, dtype, offset))
    return BinarySource(header, offset)


def _load_fortran(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int) -> NDArray[Any]:
    try:
        flat = np.fromfile(path, dtype, math.prod(shape), offset=offset)
        return np.ascontiguousarray(flat.reshape(shape, order="F"))
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None


def _unpacked(path: Path, info: zipfile.ZipInfo, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> FrameSource:
    """A compressed member. What it unpacks to must be what its header promises, so that nothing larger than that is ever made."""
    header = stack_header(path, "npz", shape, dtype, f"{path}::{name}")
    promised = header.n_frames * header.frame_bytes
    if not promised <= info.file_size <= promised + 65536:
        raise DataError(f"{path}::{name}: the header promises {promised} bytes, the archive has {info.file_size}; is it damaged?")
    return LateSource(header, partial(_load_member, path, info.filename))


def _load_member(path: Path, name: str) -> NDArray[Any]:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as member:
            return np.lib.format.read_array(member, allow_pickle=False)
    except _ERRORS as error:
        raise unreadable(path, error, "not an .npz file") from None


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
