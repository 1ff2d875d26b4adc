"""MRC and MRCS stacks: movies of direct-electron and FEI cameras. A header of 1024 bytes, an extended header, then the frames.

Rows are given as stored; MRC calls the first one in the file the bottom one. The header's pixel size is a length in the image of a
specimen, which a diffraction pattern has not: it is not used.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ptycho.errors import DataError
from ptycho.frames import FrameSource, Header, Quantity
from ptycho.io.files import file_size, unreadable
from ptycho.io.options import Options
from ptycho.io.raw import set_scan_shape, shape_in_name, whole_frames
from ptycho.io.source import BinarySource

_HEADER_BYTES = 1024
_TYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
_OTHER_MODES = (3, 4, 16, 101)  # complex, complex, colour, 4 bits per pixel
_ORDERS = {0x44: "<", 0x11: ">"}
#: IMOD and SerialEM write this number at byte 152 when the flags at 156 hold; their bytes are signed only with the first flag.
_IMOD_STAMP = 1146047817
_VOLUME_STACKS = range(401, 631)


@dataclass(frozen=True)
class _Fields:
    """What the header says: the byte order, (nz, ny, nx), the mode, and where the frames begin."""

    order: str
    shape: tuple[int, int, int]
    mode: int
    offset: int


def open_mrc(path: Path, options: Options) -> FrameSource:
    """Frames of an MRC file, modes 0, 1, 2, 6 and 12, of either byte order. Raises DataError for anything else."""
    size = file_size(path)
    if options.dataset is not None:
        raise DataError(f"{path}: an MRC file has no datasets; remove ::{options.dataset[:60]}")
    try:
        with open(path, "rb") as file:
            head = file.read(_HEADER_BYTES)
            fields = _fields(path, head)
            extended = file.read(min(fields.offset - _HEADER_BYTES, 92))
    except OSError as error:
        raise unreadable(path, error) from None
    stored = _dtype(path, head, fields)
    header = Header(path, "mrc", _count(path, fields, stored, size), (fields.shape[1], fields.shape[2]), stored.newbyteorder("="))
    _add_warnings(header, head, fields, size)
    _add_voltage(header, head, extended, fields.order)
    set_scan_shape(header, _volumes(head, fields), f"{path.name}: header mz")
    if header.scan_shape is None:
        set_scan_shape(header, shape_in_name(path), "file name")
    return BinarySource(header, fields.offset, stored=stored)


def _fields(path: Path, head: bytes) -> _Fields:
    """The header in the byte order of its machine stamp, or in the other one when only that gives numbers that can be true."""
    if len(head) < _HEADER_BYTES:
        raise DataError(f"{path}: {len(head)} bytes are less than an MRC header of {_HEADER_BYTES}; is it complete and an MRC file?")
    stamped = _ORDERS.get(head[212], "<")
    for order in (stamped, "<" if stamped == ">" else ">"):
        nx, ny, nz, mode = struct.unpack_from(f"{order}4i", head)
        (extended,) = struct.unpack_from(f"{order}i", head, 92)
        if 1 <= nx <= 65536 and 1 <= ny <= 65536 and nz >= 0 and mode in (*_TYPES, *_OTHER_MODES) and extended >= 0:
            return _Fields(order, (nz, ny, nx), mode, _HEADER_BYTES + extended)
    nx, ny, nz, mode = struct.unpack_from(f"{stamped}4i", head)
    raise DataError(f"{path}: not an MRC file, or damaged: its header says {nz} frames of {ny} x {nx} pixels, mode {mode}")


def _dtype(path: Path, head: bytes, fields: _Fields) -> np.dtype[np.generic]:
    if fields.mode not in _TYPES:
        raise DataError(f"{path}: MRC mode {fields.mode} (complex, colour or 4 bits) is not read; save it in mode {', '.join(map(str, _TYPES))}")
    stamp, flags = struct.unpack_from(f"{fields.order}2i", head, 152)
    unsigned = fields.mode == 0 and stamp == _IMOD_STAMP and not flags & 1
    return np.dtype(fields.order + ("u1" if unsigned else _TYPES[fields.mode]))


def _count(path: Path, fields: _Fields, stored: np.dtype[np.generic], size: int) -> int:
    """Frames that are in the file, at most those of the header; a header that was never finished says 0."""
    nz, ny, nx = fields.shape
    frame_bytes = ny * nx * stored.itemsize
    there = whole_frames(size, fields.offset, frame_bytes, frame_bytes)
    if not there:
        raise DataError(f"{path}: frames of {ny} x {nx} from byte {fields.offset} on do not fit into a file of {size} bytes; has it been cut?")
    return min(there, nz) if nz else there


def _add_warnings(header: Header, head: bytes, fields: _Fields, size: int) -> None:
    name, n, said = header.path.name, header.n_frames, fields.shape[0]
    if n < said:
        header.warnings.append(f"{name}: the header says {said} frames, the file has {n} whole ones; it has been cut")
    elif not said:
        header.warnings.append(f"{name}: the header says 0 frames; the file's size allows {n}, which are used")
    else:
        rest = size - fields.offset - n * header.frame_bytes
        if rest:
            header.warnings.append(f"{name}: {rest} bytes after the last frame are left out")
    if head[208:212].rstrip(b"\0 ") != b"MAP":
        header.warnings.append(f'{name}: the mark "MAP " of MRC files is missing; check that the patterns look right')


def _add_voltage(header: Header, head: bytes, extended: bytes, order: str) -> None:
    """The high tension in the extended header of FEI's cameras, in V at byte 84 of the first frame's record."""
    if head[104:108] in (b"FEI1", b"FEI2") and len(extended) >= 92:
        (volts,) = struct.unpack_from(f"{order}d", extended, 84)
        if 1e4 <= volts <= 2e6:
            header.metadata["voltage_kV"] = Quantity(volts / 1000, "kV", f"{header.path.name}: FEI extended header HT")


def _volumes(head: bytes, fields: _Fields) -> tuple[int, int] | None:
    """A stack of volumes (space group 401 and on) has two axes before the rows: nz / mz volumes of mz sections."""
    mz, group = struct.unpack_from(f"{fields.order}i", head, 36)[0], struct.unpack_from(f"{fields.order}i", head, 88)[0]
    nz = fields.shape[0]
    return (nz // mz, mz) if group in _VOLUME_STACKS and mz > 0 and nz and nz % mz == 0 else None
