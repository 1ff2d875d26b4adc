"""Raw binary files, which the user describes ([data.layout]), and what is common to all files of frames at equal distances."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ptycho.errors import DataError
from ptycho.frames import FrameSource, Header, Quantity
from ptycho.io.files import file_size
from ptycho.io.options import Options, RawLayout
from ptycho.io.source import BinarySource


def open_raw(path: Path, options: Options) -> FrameSource:
    """Frames of a file of numbers as ``options.layout`` describes it; their number follows from the size of the file.

    Raises DataError without a layout, or when the file has not one whole frame.
    """
    size = file_size(path)
    if options.dataset is not None:
        raise DataError(f"{path}: a raw file has no datasets; remove ::{options.dataset[:60]}")
    if options.layout is None:
        raise DataError(f'{path}: a raw file does not describe itself; give [data.layout] dtype = "<u2", frame_shape = [256, 256] or its values')
    source = _described(path, options.layout, size)
    set_scan_shape(source.header, shape_in_name(path), "file name")
    return source


def _described(path: Path, layout: RawLayout, size: int) -> BinarySource:
    ky, kx = (int(n) for n in layout.frame_shape)
    stored = np.dtype(layout.dtype)
    frame_bytes = ky * kx * stored.itemsize
    stride = layout.before_bytes + frame_bytes + layout.after_bytes
    first = layout.offset_bytes + layout.before_bytes
    n_frames = whole_frames(size, first, stride, frame_bytes)
    if not n_frames:
        said = f"{layout.dtype}, {ky} x {kx}, offset {layout.offset_bytes}, before {layout.before_bytes}, after {layout.after_bytes}"
        raise DataError(f"{path}: {size} bytes are less than the {first + frame_bytes} of one frame in [data.layout] ({said}); mend the layout")
    header = Header(path, "raw", n_frames, (ky, kx), stored.newbyteorder("="))
    rest = size - layout.offset_bytes - n_frames * stride
    if rest > 0:
        header.warnings.append(f"{path.name}: {rest} bytes after the last whole frame are left out; the file may be cut or [data.layout] wrong")
    elif rest not in (0, -layout.after_bytes):
        header.warnings.append(f"{path.name}: the {layout.after_bytes} bytes after the last frame are not all there; has the file been cut?")
    return BinarySource(header, first, stride, stored=stored, column_major=layout.column_major)


def whole_frames(size: int, offset: int, stride: int, frame_bytes: int) -> int:
    """Number of frames whose pixels are all within a file of ``size`` bytes; bytes that follow the last frame's pixels may be missing."""
    return max(0, (size - offset - frame_bytes) // stride + 1)


def shape_in_name(path: Path) -> tuple[int, int] | None:
    """(slow, fast) = (48, 64) from a name such as ``scan_x64_y48.raw``."""
    match = re.search(r"x(\d{1,5})_y(\d{1,5})(?!\d)", path.name, re.ASCII)
    return (int(match[2]), int(match[1])) if match and int(match[1]) and int(match[2]) else None


def set_scan_shape(header: Header, shape: tuple[int, int] | None, source: str) -> None:
    """Take the scan shape (slow, fast) that ``source`` says when the frames are as many; whole lines when the scan was not finished."""
    if shape is None:
        return
    slow, fast = shape
    n, name = header.n_frames, header.path.name
    if n > slow * fast or n < fast:
        header.warnings.append(f"{name}: the scan shape {slow} x {fast} ({source}) is not used: there are {n} frames")
        return
    if n < slow * fast:
        header.warnings.append(f"{name}: {n} frames for a scan of {slow} x {fast} ({source}): {n // fast} whole scan lines are used")
    header.scan_shape = (n // fast, fast)
    header.metadata["scan_shape"] = Quantity(header.scan_shape, "", source)
