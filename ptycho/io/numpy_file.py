"""NumPy files: ``.npy`` and ``.npz``. Arrays are (slow, fast, ky, kx) or (n, ky, kx), read lazily where the layout allows."""

from __future__ import annotations

import io
import math
import struct
import zipfile
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.frames import FrameSource, Header
from ptycho.io.files import file_size, unreadable
from ptycho.io.options import Options
from ptycho.io.source import BinarySource, LateSource, stack_header

#: An archive's list of members, and the header of one array, may take this many bytes; NumPy's own headers have about 100.
_MAX_DIRECTORY_BYTES = 4 << 20
_MAX_HEADER_BYTES = 10_000
_MAX_MEMBERS = 2000
#: Deflate cannot make data smaller than by this factor.
_MAX_DEFLATE = 1040


@dataclass(frozen=True)
class _Array:
    """One array in a file: its name in messages, what its header says, and the bytes of that header."""

    name: str
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    header_bytes: int

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def open_npy(path: Path, options: Options) -> FrameSource:
    """Frames of an ``.npy`` file. Raises DataError for other files, object arrays and wrong shapes."""
    return _open_npy(path, options, (3, 4))


def open_npy_frames(path: Path, options: Options) -> FrameSource:
    """As ``open_npy``; an array (ky, kx) is one frame."""
    return _open_npy(path, options, (2, 3, 4))


def _open_npy(path: Path, options: Options, axes: tuple[int, ...]) -> FrameSource:
    size = file_size(path)
    if options.dataset is not None:
        raise DataError(f"{path}: an .npy file has no datasets; remove ::{options.dataset[:60]}")
    try:
        with open(path, "rb") as file:
            array = _read_header(file, str(path))
    except (OSError, ValueError) as error:
        raise unreadable(path, error, "not a NumPy file") from None
    header = _header(path, "npy", array, axes)
    return _source(header, array, array.header_bytes, size)


def load_npy(path: Path) -> NDArray[Any]:
    """All of a small ``.npy`` file of numbers: positions, a mask, an image. Raises DataError for anything else.

    NumPy's own ``load`` would make room for whatever the header promises, and fails in more ways than can be caught.
    """
    size = file_size(path)
    try:
        with open(path, "rb") as file:
            array = _read_header(file, str(path))
        if array.dtype.kind not in "biuf":
            raise DataError(f"{path}: values of type {str(array.dtype)[:40]} are not the real numbers that are needed")
        if min(array.shape, default=0) < 0 or array.header_bytes + array.n_bytes > size:
            raise DataError(f"{path}: the header promises {array.header_bytes + array.n_bytes} bytes, the file has {size}; has it been cut?")
        flat = np.fromfile(path, array.dtype, math.prod(array.shape), offset=array.header_bytes)
        return flat.reshape(array.shape, order="F" if array.fortran else "C")
    except (OSError, ValueError, MemoryError) as error:
        raise unreadable(path, error, "not a NumPy file") from None


def open_npz(path: Path, options: Options) -> FrameSource:
    """Frames of one array of an ``.npz`` file: ``dataset``, else the only stack of images in it."""
    size = file_size(path)
    try:
        with _Bounded(path) as file, zipfile.ZipFile(file) as archive:
            members = {info.filename[:-4]: info for info in archive.infolist() if info.filename.endswith(".npy")}
            if len(archive.infolist()) > _MAX_MEMBERS:
                raise DataError(f"{path}: the archive has {len(archive.infolist())} members; at most {_MAX_MEMBERS} are read")
            arrays = {name: _member_header(archive, info, f"{path}::{name}") for name, info in members.items()}
            name = _choose(path, arrays, options.dataset)
            array, info = arrays[name], members[name]
            header = _header(path, "npz", array, (3, 4))
            _check_member(array, info)
            if info.compress_type != zipfile.ZIP_STORED:
                return LateSource(header, partial(_load_member, path, info.filename, array))
            offset = _data_offset(file, info)
    except DataError:
        raise
    except Exception as error:  # zipfile has no one error for damage
        raise unreadable(path, error, "not an .npz file") from None
    return _source(header, array, offset + array.header_bytes, size)


class _Bounded(FileIO):
    """A file of which no one read takes more than a list of members may need: zipfile reads as many bytes at once as the archive says."""

    def read(self, size: int | None = -1, /) -> bytes:
        """As FileIO. Raises ValueError when too many bytes are asked for."""
        if size is not None and size > _MAX_DIRECTORY_BYTES:
            raise ValueError("its list of members is too long")
        return super().read(_MAX_DIRECTORY_BYTES if size is None or size < 0 else size) or b""


def _read_header(file: IO[bytes], name: str) -> _Array:
    """What an .npy stream says at its start. Raises ValueError when it is damaged."""
    try:
        head = file.read(12)
        # NumPy would read as many bytes as version 2 promises, up to 4 GB, before it looks at their number.
        start, length = (10, int.from_bytes(head[8:10], "little")) if head[6:7] == b"\1" else (12, int.from_bytes(head[8:12], "little"))
        if length > _MAX_HEADER_BYTES:
            raise ValueError(f"it would have {length} bytes")
        stream = io.BytesIO(head + file.read(start + length - len(head)))
        version = np.lib.format.read_magic(stream)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = reader(stream)
    except Exception as error:  # NumPy evaluates the header as Python text, which fails in many ways
        raise ValueError(f"its header is damaged: {error}") from None
    if len(shape) > 32 or max(shape, default=0) >= 1 << 63:
        raise ValueError("its header is damaged: no such shape is possible")
    return _Array(name, shape, fortran, dtype, start + length)


def _header(path: Path, format: str, array: _Array, axes: tuple[int, ...]) -> Header:
    if array.dtype.kind not in "biuf":
        raise DataError(f"{array.name}: values of type {str(array.dtype)[:40]} cannot be diffraction patterns; real numbers are needed")
    shape = (1, *array.shape) if len(array.shape) == 2 and 2 in axes else array.shape
    header = stack_header(path, format, shape, array.dtype, array.name)
    header.dtype = array.dtype.newbyteorder("=")
    return header


def _source(header: Header, array: _Array, offset: int, size: int) -> FrameSource:
    needed = offset + array.n_bytes
    if needed > size:
        raise DataError(f"{array.name}: the header promises {needed} bytes, the file has {size}; has it been cut?")
    if array.fortran:
        # A pattern of a Fortran-ordered array lies all over the file.
        return LateSource(header, partial(_load_fortran, header.path, array, offset))
    return BinarySource(header, offset, stored=array.dtype)


def _load_fortran(path: Path, array: _Array, offset: int) -> NDArray[Any]:
    try:
        flat = np.fromfile(path, array.dtype, math.prod(array.shape), offset=offset)
        return np.ascontiguousarray(flat.reshape(array.shape, order="F"), array.dtype.newbyteorder("="))
    except (OSError, ValueError, MemoryError) as error:
        raise unreadable(path, error) from None


# Members of an archive


def _member_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> _Array:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{name[:150]}: it is compressed in a way that NumPy does not use; save it with numpy.savez")
    with archive.open(info) as member:
        return _read_header(member, name)


def _check_member(array: _Array, info: zipfile.ZipInfo) -> None:
    """What a member unpacks to must be what its header promises, so that nothing larger than that is ever made."""
    promised = array.header_bytes + array.n_bytes
    deflated = info.compress_type == zipfile.ZIP_DEFLATED
    possible = promised <= info.compress_size * _MAX_DEFLATE if deflated else promised == info.compress_size
    if promised != info.file_size or not possible:
        packed = f"{info.file_size} as {info.compress_size}"
        raise DataError(f"{array.name}: the header promises {promised} bytes, the archive has {packed} compressed ones; is it damaged?")


def _load_member(path: Path, name: str, array: _Array) -> NDArray[Any]:
    try:
        with _Bounded(path) as file, zipfile.ZipFile(file) as archive, archive.open(name) as member:
            found = _read_header(member, array.name)
            if found != array:
                raise ValueError("the file has changed since it was opened")
            out = np.empty(array.n_bytes, np.uint8)
            done = 0
            while done < len(out):
                block = member.read(min(len(out) - done, 1 << 20))
                if not block:
                    raise ValueError(f"it ends after {done} of {len(out)} bytes")
                out[done : done + len(block)] = np.frombuffer(block, np.uint8)
                done += len(block)
            member.read(1)  # its end, where zipfile compares the checksum
        values = out.view(array.dtype).reshape(array.shape, order="F" if array.fortran else "C")
        return np.ascontiguousarray(values, array.dtype.newbyteorder("="))
    except Exception as error:  # zipfile has no one error for damage
        raise unreadable(path, error, "not an .npz file") from None


def _data_offset(file: FileIO, info: zipfile.ZipInfo) -> int:
    """Where a stored member begins: after its local header, whose variable parts may differ from the directory's."""
    file.seek(info.header_offset + 26)
    name_length, extra_length = struct.unpack("<HH", file.read(4))
    return int(info.header_offset + 30 + name_length + extra_length)


def _choose(path: Path, arrays: dict[str, _Array], dataset: str | None) -> str:
    listed = [f"{name[:30]} {str(array.shape)[:40]} {str(array.dtype)[:20]}" for name, array in list(arrays.items())[:4]]
    found = ", ".join(listed + ["..."] * (len(arrays) > 4)) or "no arrays"
    if dataset is not None:
        if dataset not in arrays:
            raise DataError(f"{path}: there is no array {dataset[:60]!r}; the file has {found}")
        return dataset
    stacks = [name for name, array in arrays.items() if len(array.shape) in (3, 4) and array.dtype.kind in "biuf"]
    stacks = [name for name in stacks if len(arrays[name].shape) == 4] or stacks
    if len(stacks) != 1:
        raise DataError(f"{path}: which array holds the patterns? The file has {found}; write {path.name}::NAME")
    return stacks[0]
