"""Frames from tables of events that HDF5 and ``.npz`` files hold (``event_files``): compressed sparse rows, or a list in any order."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.frames import FrameSource, Header, Quantity
from ptycho.io.options import Options
from ptycho.io.source import MAX_IN_MEMORY
from ptycho.io.sparse import COUNTS, CsrSource, Events

#: Columns of compressed sparse rows, of a list of events, and what is added to a pixel in either (the first that is there).
CSR = ("indptr", "indices")
LIST = ("pos", "y", "x")
WEIGHTS = ("counts", "data", "weight")
#: Arrays or attributes beside them.
SHAPES = ("frame_shape", "scan_shape")
_BLOCK_FRAMES = 1024
_BLOCK_EVENTS = 1 << 22
#: Frames that a list of events may be sorted into.
_MAX_FRAMES = 1 << 26

#: ``read(name, first, last)`` gives rows first to last - 1 of a column.
ReadRows: TypeAlias = Callable[[str, int, int], NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Table:
    """Columns (their length and type by name), shapes if stored, and how to read them."""

    path: Path
    columns: Mapping[str, tuple[int, np.dtype[Any]]]
    shapes: Mapping[str, NDArray[Any]]
    read: ReadRows
    close: Callable[[], None]


def open_table(table: Table, options: Options, metadata: dict[str, Quantity]) -> FrameSource:
    """Frames of a table. Raises DataError when columns are missing or do not fit to each other or to the shapes."""
    kind = CSR if all(name in table.columns for name in CSR) else LIST
    missing = [name for name in kind if name not in table.columns or table.columns[name][1].kind not in "iu"]
    if missing:
        raise DataError(f"{table.path}: an event table needs the columns {', '.join(kind)} of whole numbers; {missing[0]} is not one")
    n_events = table.columns[kind[-1]][0]
    weights = next((name for name in WEIGHTS if name in table.columns and table.columns[name][0] == n_events), None)
    frame_shape = _shape(table, "frame_shape", 65536)
    scan_shape = _shape(table, "scan_shape", 1 << 31)
    if frame_shape is None:
        raise DataError(f"{table.path}: an event table needs frame_shape = [ky, kx], the pixels of the detector; add it as an array or attribute")
    dtype = COUNTS if weights is None else _frame_dtype(table.columns[weights][1])
    if kind is CSR:
        n_frames = table.columns["indptr"][0] - 1
        if n_frames < 1 or (scan_shape is not None and math.prod(scan_shape) != n_frames):
            raise DataError(f"{table.path}: indptr is for {n_frames} frames, scan_shape = {scan_shape}; they must agree")
    else:
        scan_shape = options.scan_shape or scan_shape  # pos counts the points of a scan, so its shape must be known here
        n_frames = _frames_of_list(table, scan_shape, n_events, dtype)
    header = Header(table.path, "events", n_frames, frame_shape, dtype, scan_shape, metadata=metadata)
    load = partial(_load_rows if kind is CSR else _load_list, table, header, weights)
    return CsrSource(header, load, _BLOCK_FRAMES if kind is CSR else n_frames, table.close)


def _shape(table: Table, name: str, limit: int) -> tuple[int, int] | None:
    """The stored shape; None when there is none. Raises DataError for what cannot be one."""
    if name not in table.shapes:
        return None
    values = table.shapes[name]
    if values.size != 2 or values.dtype.kind not in "iu" or not all(1 <= int(n) <= limit for n in values.ravel()):
        raise DataError(f"{table.path}: {name} = {str(values.ravel()[:4].tolist())[:60]}; two whole numbers from 1 to {limit} are needed")
    first, second = values.ravel().tolist()
    return first, second


def _frame_dtype(weights: np.dtype[Any]) -> np.dtype[Any]:
    """At least 16 bits, so that a few events in one pixel can be added up."""
    if weights.kind in "bu":
        return np.promote_types(weights, COUNTS)
    return np.promote_types(weights, np.int16 if weights.kind == "i" else np.float32)


def _frames_of_list(table: Table, scan_shape: tuple[int, int] | None, n_events: int, dtype: np.dtype[Any]) -> int:
    lengths = {table.columns[name][0] for name in LIST}
    if len(lengths) != 1:
        raise DataError(f"{table.path}: the columns pos, y and x have different lengths: {', '.join(map(str, sorted(lengths)))}")
    if scan_shape is None:
        raise DataError(f"{table.path}: a list of events needs scan_shape = [slow, fast]; add it as an array or attribute, or give [scan] shape")
    n_frames = math.prod(scan_shape)
    if n_frames > _MAX_FRAMES or n_events * (4 + dtype.itemsize) > MAX_IN_MEMORY:
        raise DataError(f"{table.path}: {n_events} events for {n_frames} frames are too many to be sorted in memory; save them as indptr, indices")
    return n_frames


def _load_rows(table: Table, header: Header, weights: str | None, first: int, last: int) -> Events:
    """Events of frames first to last - 1 from compressed sparse rows."""
    indptr = table.read("indptr", first, last + 1).astype(np.int64)
    start, end = int(indptr[0]), int(indptr[-1])
    if not 0 <= start <= end <= table.columns["indices"][0]:
        raise DataError(f"{table.path}: indptr near frame {first} goes from {start} to {end}; there are {table.columns['indices'][0]} events")
    return Events(indptr - start, table.read("indices", start, end), None if weights is None else table.read(weights, start, end))


def _load_list(table: Table, header: Header, weights: str | None, first: int, last: int) -> Events:
    """All events, sorted by frame in two passes, so that only the result and one block of the table are in memory."""
    n_events = table.columns["pos"][0]
    blocks = [(start, min(start + _BLOCK_EVENTS, n_events)) for start in range(0, n_events, _BLOCK_EVENTS)]
    numbers = np.zeros(header.n_frames, np.int64)
    for start, end in blocks:
        pos = _within(table, "pos", start, end, header.n_frames)
        np.add.at(numbers, pos, 1)
    indptr = np.append(0, np.cumsum(numbers))
    free = indptr[:-1].copy()
    indices = np.empty(n_events, np.uint32)
    values = None if weights is None else np.empty(n_events, table.columns[weights][1])
    for start, end in blocks:
        pos = _within(table, "pos", start, end, header.n_frames)
        y, x = (_within(table, name, start, end, n) for name, n in zip(("y", "x"), header.frame_shape, strict=True))
        order = np.argsort(pos, kind="stable")
        frames, begin, count = np.unique(pos[order], return_index=True, return_counts=True)
        places = np.repeat(free[frames] - begin, count) + np.arange(len(order))
        free[frames] += count
        indices[places] = (y * header.frame_shape[1] + x)[order]
        if values is not None and weights is not None:
            values[places] = table.read(weights, start, end)[order]
    return Events(indptr, indices, values)


def _within(table: Table, name: str, start: int, end: int, limit: int) -> NDArray[np.int64]:
    """Part of a column whose values must be from 0 to limit - 1."""
    values = table.read(name, start, end)
    outside = (values < 0) | (values >= limit)
    if len(values) != end - start or outside.any():
        place = int(np.argmax(outside)) if outside.any() else 0
        raise DataError(f"{table.path}: {name} of event {start + place} is {values[place]}; it must be from 0 to {limit - 1}")
    return values.astype(np.int64)
