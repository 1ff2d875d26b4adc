"""Variables of MATLAB files of versions 5 to 7: what their headers say, and their values.

scipy.io is not used: it has no random access, and makes what a header claims before it looks at the file. Only numbers are read.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.frames import Header
from ptycho.io.files import file_size, unreadable
from ptycho.io.source import BinarySource

_MATRIX, _COMPRESSED = 14, 15
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_NUMERIC = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_OTHER = {1: "cell", 2: "struct", 3: "object", 4: "char", 5: "sparse", 16: "function", 17: "object"}
_DOUBLE = np.dtype("f8")
_COMPLEX_FLAG = 0x0800
_MAX_VARIABLES = 1000
_HEAD_BYTES = 4096
_PIECE = 1 << 16
#: zlib packs at most 1032 bytes into one.
_MAX_RATIO = 1032


@dataclass(frozen=True)
class Variable:
    """A variable: its ``shape`` in MATLAB's order, and its values at ``offset`` in the file, or in what the ``packed`` bytes unpack to.

    ``dtype`` is its class; ``stored`` is the smaller type of whole numbers that MATLAB may have written in its place. ``kind`` says
    what it is instead when it is no array of real numbers.
    """

    name: str
    kind: str = ""
    shape: tuple[int, ...] = ()
    dtype: np.dtype[Any] = _DOUBLE
    stored: np.dtype[Any] = _DOUBLE
    offset: int = 0
    packed: tuple[int, int] | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes of the values as stored."""
        return math.prod(self.shape) * self.stored.itemsize

    def __str__(self) -> str:
        return f"{self.name} {self.kind or f'{self.shape} {self.dtype}'}"


def variables(path: Path) -> list[Variable]:
    """The variables of a file of version 5, from their headers. Raises DataError when it is not one."""
    size = file_size(path)
    found: list[Variable] = []
    try:
        with FileIO(path) as file:
            head = file.read(128)
            order = {b"IM": "<", b"MI": ">"}.get(head[126:128])
            if order is None or head[124:126] not in (b"\x00\x01", b"\x01\x00"):
                raise DataError(f"{path}: not a MATLAB file of version 5 or later; save it in MATLAB with save(..., '-v7.3')")
            at = 128
            while at + 8 <= size and len(found) < _MAX_VARIABLES:
                file.seek(at)
                kind, length = struct.unpack(f"{order}II", file.read(8))
                if kind not in (_MATRIX, _COMPRESSED):
                    found.append(Variable(f"byte {at}", "damaged"))
                    break
                found.append(_variable(file, (at, length), order, kind == _COMPRESSED))
                at += 8 + length
    except (OSError, struct.error) as error:
        raise unreadable(path, error, "not a MATLAB 5 file") from None
    return found


def _variable(file: FileIO, place: tuple[int, int], order: str, compressed: bool) -> Variable:
    """One variable from the start of its element, of which ``place`` is the first byte and the length."""
    at, length = place
    try:
        if compressed:
            head = zlib.decompressobj().decompress(file.read(min(length, _PIECE)), _HEAD_BYTES)
            return _parse(head, order, 0, (at + 8, length))
        file.seek(at)
        return _parse(file.read(min(length + 8, _HEAD_BYTES)), order, at, None)
    except (struct.error, zlib.error, ValueError):
        return Variable(f"byte {at}", "damaged")


def _parse(head: bytes, order: str, start: int, packed: tuple[int, int] | None) -> Variable:
    """A variable from its first bytes, which stand at ``start``. Raises ValueError or struct.error when they are damaged."""
    if struct.unpack_from(f"{order}I", head)[0] != _MATRIX:
        raise ValueError("no matrix")
    _, at, _, after = _element(head, 8, order)
    (flags,) = struct.unpack_from(f"{order}I", head, at)
    kind = flags & 0xFF
    if kind == 17:
        return Variable(f"byte {start}", _OTHER[kind])
    _, at, length, after = _element(head, after, order)
    if length % 4 or not 8 <= length <= 128:
        raise ValueError("no shape")
    shape = struct.unpack_from(f"{order}{length // 4}i", head, at)
    _, at, length, after = _element(head, after, order)
    name = "".join(c if c.isprintable() else "?" for c in head[at : at + min(length, 63)].decode("latin-1"))
    if kind not in _NUMERIC or flags & _COMPLEX_FLAG or min(shape) < 1:
        return Variable(name, _OTHER.get(kind, "complex" if flags & _COMPLEX_FLAG else "empty" if kind in _NUMERIC else "unknown"))
    code, at, length, _ = _element(head, after, order)
    dtype, stored = np.dtype(order + _NUMERIC[kind]), np.dtype(order + _STORED.get(code, "c16"))
    variable = Variable(name, "", shape, dtype, stored, start + at, packed)
    if length != variable.n_bytes or not np.can_cast(stored, dtype, "same_kind"):
        raise ValueError("no values")
    return variable


def _element(head: bytes, at: int, order: str) -> tuple[int, int, int, int]:
    """(type, first byte, length, end) of the element at ``at``; up to 4 bytes may stand within its tag."""
    (word,) = struct.unpack_from(f"{order}I", head, at)
    if word >> 16:
        return word & 0xFFFF, at + 4, min(word >> 16, 4), at + 8
    (length,) = struct.unpack_from(f"{order}I", head, at + 4)
    return word, at + 8, length, at + 8 + -(-length // 8) * 8


def check_size(path: Path, variable: Variable) -> None:
    """Raise DataError unless the file is long enough for the variable, and its packed bytes can be so many values."""
    size = file_size(path)
    end = sum(variable.packed) if variable.packed is not None else variable.offset + variable.n_bytes
    if end > size:
        raise DataError(f"{path}: {variable.name} ends at byte {end}, the file has {size}; has it been cut?")
    if variable.packed is not None and variable.n_bytes > variable.packed[1] * _MAX_RATIO:
        raise DataError(f"{path}: {variable.name} has {variable.packed[1]} packed bytes, too few for its {variable.n_bytes}; is it damaged?")


class ColumnSource:
    """Frames of an array (ky, kx, ...) that is not compressed, read when asked for. Implements FrameSource."""

    def __init__(self, header: Header, variable: Variable) -> None:
        self.header = header
        height, width = header.frame_shape
        self._columns = BinarySource(Header(header.path, header.format, header.n_frames, (width, height), variable.stored), variable.offset)

    def read(self, frames: NDArray[np.int64]) -> NDArray[Any]:
        """Frames (n, ky, kx) in the class of the variable. Raises DataError when the file ends too early."""
        frames = np.asarray(frames, np.int64)
        if self.header.scan_shape is not None:
            slow, fast = self.header.scan_shape
            frames = frames % fast * slow + frames // fast  # scan_y is the faster axis in the file
        return np.ascontiguousarray(self._columns.read(frames).transpose(0, 2, 1), self.header.dtype)

    def close(self) -> None:
        """Nothing to release."""


def load_array(path: Path, variable: Variable, order: list[int]) -> NDArray[Any]:
    """The whole array, its axes in our order."""
    try:
        values = np.empty(math.prod(variable.shape), variable.stored)
        if variable.packed is None:
            with FileIO(path) as file:
                file.seek(variable.offset)
                if file.readinto(values.data.cast("B")) != values.nbytes:
                    raise DataError(f"{path}: the file ends in {variable.name}; has it been cut?")
        else:
            _unpack(path, variable, values.data.cast("B"))
        return np.ascontiguousarray(values.reshape(variable.shape, order="F").transpose(order), variable.dtype)
    except (OSError, ValueError, zlib.error, MemoryError) as error:
        raise unreadable(path, error, f"{variable.name} cannot be read") from None


def _unpack(path: Path, variable: Variable, out: memoryview) -> None:
    """Fill ``out`` from the compressed bytes, in pieces, so that nothing larger than a piece is made beside it."""
    start, left = variable.packed or (0, 0)
    unpacker, skip, done = zlib.decompressobj(), variable.offset, 0
    with FileIO(path) as file:
        file.seek(start)
        while left and not unpacker.eof:
            piece = file.read(min(left, _PIECE))
            if not piece:
                break
            left -= len(piece)
            plain = memoryview(unpacker.decompress(piece))
            skipped, skip = plain[skip:], max(0, skip - len(plain))
            used = skipped[: len(out) - done]
            out[done : done + len(used)] = used
            done += len(used)
    if done < len(out) or not unpacker.eof:
        raise DataError(f"{path}: {variable.name} unpacks to {done} of {len(out)} bytes; has the file been cut?")
