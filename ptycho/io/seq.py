"""Norpix StreamPix ``.seq`` (Direct Electron Celeritas and other fast cameras): a header, then images at equal distances.

Little-endian: FEED at 0, version at 28, then width, height, bits and bytes of an image, number of frames, and bytes from image to image
at 548 to 580. Images begin at 8192 from version 5 on, at 1024 before. Each has its time stamp behind its pixels, which is not read.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from ptycho.errors import DataError
from ptycho.frames import FrameSource, Header
from ptycho.io.files import file_size, unreadable
from ptycho.io.options import Options
from ptycho.io.source import BinarySource

_MAGIC = 0xFEED
_HEADER_BYTES = 1024
_TYPES: dict[int, np.dtype[Any]] = {8: np.dtype("u1"), 16: np.dtype("<u2"), 32: np.dtype("<u4")}


def open_seq(path: Path, options: Options) -> FrameSource:
    """Frames of a ``.seq``. Raises DataError for anything else, and for compressed or coloured images."""
    size = file_size(path)
    if options.dataset is not None:
        raise DataError(f"{path}: a .seq file has no datasets; remove ::{options.dataset[:80]}")
    try:
        with open(path, "rb") as file:
            head = file.read(_HEADER_BYTES)
        (magic,), (version,) = struct.unpack_from("<I", head), struct.unpack_from("<i", head, 28)
        width, height, bits, _, image_bytes, _, promised, _, stride = struct.unpack_from("<9I", head, 548)
    except (OSError, struct.error) as error:
        raise unreadable(path, error, "not a StreamPix file") from None
    if magic != _MAGIC or bits not in _TYPES:
        raise DataError(f"{path}: not a StreamPix file of grey images of 8, 16 or 32 bits; its header says FEED = {magic:04X}, {bits} bits")
    dtype = _TYPES[bits]
    pixel_bytes = width * height * dtype.itemsize
    if not pixel_bytes or max(width, height) > 65536 or image_bytes != pixel_bytes or stride < pixel_bytes:
        said = f"images of {height} x {width} pixels in {image_bytes} bytes, {stride} apart"
        raise DataError(f"{path}: {said}; compressed or damaged files are not read")
    offset = 8192 if version >= 5 else _HEADER_BYTES
    # The last image may have lost its time stamp.
    present = max(size - offset + stride - pixel_bytes, 0) // stride
    if not present:
        raise DataError(f"{path}: {size} bytes hold no whole image of {height} x {width} pixels; has it been cut?")
    header = Header(path, "seq", min(present, promised) if promised else present, (height, width), dtype)
    if present < promised:
        header.warnings.append(f"{path.name}: {present} of {promised} images are in the file; has it been cut?")
    return BinarySource(header, offset, stride)
