"""Which frame of a file belongs to which point of the scan."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError, RecipeError
from ptycho.frames import FrameSource
from ptycho.io.files import factor_pairs, file_size, read_csv, unreadable
from ptycho.io.hdf5 import read_table


def place_frames(
    source: FrameSource,
    wanted: tuple[int, int] | None,
    region: tuple[int, int, int, int] | None,
    positions: NDArray[np.float64] | None,
    warnings: list[str],
) -> tuple[tuple[int, int], NDArray[np.int64], NDArray[np.float64] | None]:
    """(scan shape, frame of each position, positions or None) with the region cut out."""
    if wanted is not None:
        shape = _fit_shape(source, wanted, warnings)
    elif source.header.scan_shape is not None:
        shape = source.header.scan_shape
        said = source.header.metadata.get("scan_shape")
        if said is not None and not said.trusted:
            warnings.append(f"{source.header.path.name}: the scan shape {shape[0]} x {shape[1]} is {said.source}; give scan_shape")
    elif positions is not None:
        shape = (1, len(positions))
    else:
        n = source.header.n_frames
        raise DataError(f"{source.header.path}: the scan shape of {n} frames is not known; give [scan] shape = [slow, fast], for example {factor_pairs(n)}")
    frames = np.arange(shape[0] * shape[1])
    if frames.size > source.header.n_frames or (positions is not None and len(positions) not in (frames.size, source.header.n_frames)):
        found = len(positions) if positions is not None else frames.size
        raise DataError(f"{source.header.path}: {found} positions are given for {source.header.n_frames} frames; there must be one row for each frame")
    if region is not None:
        y0, y1, x0, x1 = region
        if y1 > shape[0] or x1 > shape[1]:
            raise RecipeError(f"data.scan_region = {list(region)} is not within the scan of {shape[0]} x {shape[1]} points")
        frames = frames.reshape(shape)[y0:y1, x0:x1].ravel()
        shape = (y1 - y0, x1 - x0)
    return shape, frames, None if positions is None else positions[frames]


def _fit_shape(source: FrameSource, wanted: tuple[int, int], warnings: list[str]) -> tuple[int, int]:
    """The shape the user gave, cut to whole scan lines when the scan was not finished."""
    slow, fast = wanted
    n, name = source.header.n_frames, source.header.path.name
    if slow * fast <= n:
        if slow * fast < n:
            warnings.append(f"{name}: the scan of {slow} x {fast} uses the first {slow * fast} of {n} frames")
        return wanted
    stored = source.header.scan_shape
    complete = stored is not None and stored[0] * stored[1] == n and fast != stored[1]
    aborted = n % fast == 0 or (stored is not None and stored[1] == fast)
    if aborted and not complete and n >= fast:
        warnings.append(f"{name}: {n} frames for a scan of {slow} x {fast}: {n // fast} whole scan lines are used")
        return n // fast, fast
    says = "" if stored is None else f", by the file {stored[0]} x {stored[1]}"
    raise DataError(
        f"{source.header.path}: scan shape {slow} x {fast} needs {slow * fast} frames, the file has {n}{says}; "
        f"{n} frames are {factor_pairs(n)}, or {n // fast} whole lines of {fast}"
    )


def read_positions(path: str | os.PathLike[str]) -> NDArray[np.float64]:
    """(N, 2) positions y, x in Å from csv, npy or HDF5."""
    name, _, dataset = os.fspath(path).partition("::")
    file = Path(name)
    file_size(file)
    try:
        if file.suffix.lower() == ".npy":
            table = np.load(file, allow_pickle=False)
        elif file.suffix.lower() in (".h5", ".hdf5"):
            table = read_table(file, dataset or None)
        else:
            table = read_csv(file)
        positions = np.asarray(table, float)
    except (OSError, ValueError, TypeError) as error:
        raise unreadable(file, error, "positions cannot be read") from None
    if positions.ndim != 2 or positions.shape[1] != 2 or not np.isfinite(positions).all():
        raise DataError(f"{file}: positions of the shape {positions.shape}; two columns y, x of finite numbers in Å are needed")
    return positions
