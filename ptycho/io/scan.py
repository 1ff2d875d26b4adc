"""Which frame of a file belongs to which point of the scan."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError, RecipeError, ScanShapeError
from ptycho.frames import Header
from ptycho.io.files import factor_pairs, file_size, read_csv, unreadable
from ptycho.io.guard import check_in_child
from ptycho.io.hdf5 import read_table
from ptycho.io.numpy_file import load_npy
from ptycho.io.options import Options
from ptycho.preparation import Box


@dataclass(frozen=True)
class ScanRequest:
    """What the user says of the scan. ``flyback`` are the frames before and after each line, ``skip`` those before the first line."""

    shape: tuple[int, int] | None = None
    region: Box | None = None
    flyback: tuple[int, int] | None = None
    skip: int = 0
    positions: NDArray[np.float64] | None = None


@dataclass(frozen=True, eq=False)
class Placed:
    """The frame of each position; scan shape and raster points (None: all) as in Dataset4D; positions (N, 2) or None for a raster."""

    shape: tuple[int, int]
    frames: NDArray[np.int64]
    points: NDArray[np.int64] | None
    positions: NDArray[np.float64] | None


def place_frames(header: Header, request: ScanRequest, warnings: list[str]) -> Placed:
    """Put frames and positions together and cut the region out. Frames that are missing leave points without a pattern.

    Raises DataError when the scan shape is not known or does not fit, RecipeError for a region outside of the scan.
    """
    positions = request.positions
    if positions is None and request.shape is None:
        positions = header.positions_A
    if positions is not None and request.shape is None and header.scan_shape is None:
        if len(positions) != header.n_frames:
            raise DataError(f"{header.path}: {len(positions)} positions are given for {header.n_frames} frames; there must be one row for each frame")
        if request.region is not None:
            raise RecipeError(f"data.scan_region = {list(request.region)}: these positions are a list, not a scan; give [scan] shape as well")
        return Placed((1, len(positions)), np.arange(header.n_frames), None, positions)
    flyback = _flyback(header, request)
    shape = _shape(header, replace(request, flyback=flyback), warnings)
    points, frames = _points_of_frames(header, shape, flyback, request.skip)
    if not len(frames):
        raise DataError(
            f"{header.path}: no frame lies in the scan of {shape[0]} x {shape[1]} points; check scan.shape, flyback and skip_frames = {request.skip}"
        )
    rows = shape[0] * shape[1]
    if positions is not None and len(positions) not in (rows, header.n_frames):
        raise DataError(
            f"{header.path}: {len(positions)} positions are given for {header.n_frames} frames: scan.positions_file must have a row for each, "
            "or for each scan point"
        )
    if len(points) < rows:
        warnings.append(f"{header.path.name}: {rows - len(points)} of {rows} scan points have no frame in the file and are left out")
    if positions is not None:
        positions = positions[frames if len(positions) == header.n_frames else points]
    if request.region is not None:
        shape, kept, points = _cut(shape, points, request.region)
        frames, positions = frames[kept], None if positions is None else positions[kept]
        if not len(frames):
            raise DataError(f"{header.path}: no frame lies in data.scan_region = {list(request.region)}")
    if len(points) == shape[0] * shape[1]:
        return Placed(shape, frames, None, positions)
    return Placed(shape, frames, points, None) if positions is None else Placed((1, len(frames)), frames, None, positions)


def _flyback(header: Header, request: ScanRequest) -> tuple[int, int]:
    """The user's, else the file's when it speaks of the same lines."""
    if request.flyback is not None:
        return request.flyback
    same = request.shape is None or header.scan_shape is None or request.shape[1] == header.scan_shape[1]
    return header.flyback if same else (0, 0)


def _points_of_frames(header: Header, shape: tuple[int, int], flyback: tuple[int, int], skip: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(scan points that have a frame, in order; the frame of each). Of several frames for one point the first is used."""
    slow, fast = shape
    if header.acquired is None and not any(flyback) and not skip:  # most scans; the rest takes seconds for millions of frames
        every = np.arange(min(header.n_frames, slow * fast))
        return every, every
    acquired = np.arange(header.n_frames) if header.acquired is None else header.acquired
    row, column = np.divmod(acquired - skip, flyback[0] + fast + flyback[1])
    column = column - flyback[0]
    inside = (row >= 0) & (row < slow) & (column >= 0) & (column < fast)
    points, first = np.unique((row * fast + column)[inside], return_index=True)
    return points, np.flatnonzero(inside)[first]


def _cut(shape: tuple[int, int], points: NDArray[np.int64], region: Box) -> tuple[tuple[int, int], NDArray[np.bool_], NDArray[np.int64]]:
    """(shape of the region, which points lie in it, these points numbered within it)."""
    y0, y1, x0, x1 = region
    if y1 > shape[0] or x1 > shape[1]:
        raise RecipeError(f"data.scan_region = {list(region)} is not within the scan of {shape[0]} x {shape[1]} points")
    row, column = np.divmod(points, shape[1])
    kept = (row >= y0) & (row < y1) & (column >= x0) & (column < x1)
    return (y1 - y0, x1 - x0), kept, ((row - y0) * (x1 - x0) + column - x0)[kept]


def _shape(header: Header, request: ScanRequest, warnings: list[str]) -> tuple[int, int]:
    n, name, said = header.n_frames, header.path.name, header.metadata.get("scan_shape")
    if request.shape is not None:
        return _fit_shape(header, request, warnings)
    if header.scan_shape is None:
        message = f"{header.path}: the scan shape of {n} frames is not known; give [scan] shape = [slow, fast], for example {factor_pairs(n)}"
        raise ScanShapeError(message, n)
    shape = header.scan_shape
    if said is not None and not said.trusted:
        warnings.append(f"{name}: the scan shape {shape[0]} x {shape[1]} is {said.source}; give scan_shape")
    return shape


def _fit_shape(header: Header, request: ScanRequest, warnings: list[str]) -> tuple[int, int]:
    """The shape the user gave, cut to whole scan lines when the scan was not finished."""
    assert request.shape is not None and request.flyback is not None
    slow, fast = request.shape
    before, after = request.flyback
    line, name = before + fast + after, header.path.name
    if header.acquired is not None:
        # Frames are missing from the file: their number says nothing of the shape.
        return request.shape
    n = header.n_frames - request.skip
    needed = slow * line - after
    if n >= needed:
        if n > slow * line:
            warnings.append(f"{name}: the scan of {slow} x {fast} uses the first {slow * line} of {n} frames{_maybe_flyback(n, slow, fast)}")
        return request.shape
    stored = header.scan_shape
    complete = stored is not None and stored[0] * stored[1] == n and fast != stored[1]
    aborted = n % line == 0 or (stored is not None and stored[1] == fast)
    if aborted and not complete and n >= line:
        warnings.append(f"{name}: {n} frames for a scan of {slow} x {fast}: {n // line} whole scan lines are used")
        return n // line, fast
    says = "" if stored is None else f", by the file {stored[0]} x {stored[1]}"
    raise DataError(
        f"{header.path}: scan shape {slow} x {fast} needs {slow * line} frames, the file has {n}{says}; "
        f"{n} frames are {factor_pairs(n)}, or {n // line} whole lines of {line}"
    )


def _maybe_flyback(n: int, slow: int, fast: int) -> str:
    extra = n // slow - fast
    return f"; if each line has {extra} more for the flyback give [scan] flyback = [0, {extra}]" if n % slow == 0 and extra > 0 else ""


def read_positions(path: str | os.PathLike[str], guarded: bool = False) -> NDArray[np.float64]:
    """(N, 2) positions y, x in Å from csv, npy or HDF5. ``guarded``: this is the child process already that tries it out."""
    name, _, dataset = os.fspath(path).partition("::")
    file = Path(name)
    file_size(file)
    try:
        if file.suffix.lower() == ".npy":
            table = load_npy(file)
        elif file.suffix.lower() in (".h5", ".hdf5"):
            if not guarded:
                check_in_child(file, "positions", Options(dataset=dataset or None))
            table = read_table(file, dataset or None)
        else:
            table = read_csv(file)
        positions = np.asarray(table, float)
    except (OSError, ValueError, TypeError) as error:
        raise unreadable(file, error, "positions cannot be read") from None
    if positions.ndim != 2 or positions.shape[1] != 2 or not np.isfinite(positions).all():
        raise DataError(f"{file}: positions of the shape {positions.shape}; two columns y, x of finite numbers in Å are needed")
    return positions
