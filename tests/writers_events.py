"""Sparse files of counts for tests: stempy's HDF5, and plain event tables."""

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray


def pixels_hit(pattern: NDArray) -> NDArray[np.uint32]:
    """Flat pixel of every count, so that a pixel of 3 counts stands there three times."""
    return np.repeat(np.arange(pattern.size, dtype=np.uint32), pattern.ravel().astype(int))


def write_stempy(path: Path, patterns: NDArray, *, version: int = 3, per_position: int = 1, chunked: bool = False) -> None:
    """Counts (slow, fast, ky, kx) with a flyback column of other counts. ``per_position`` rows for each position (version 3)."""
    slow, fast, *frame_shape = patterns.shape
    rows = []
    for line in patterns:
        for pattern in [*line, np.ones(frame_shape, int)]:
            events = pixels_hit(pattern)
            rows += [events[k::per_position] for k in range(per_position)]
    with h5py.File(path, "w") as file:
        if version > 1:
            file.attrs["version"] = version
        group = file.create_group("electron_events")
        layout = {"maxshape": (None,), "chunks": (8,)} if chunked else {}
        frames = group.create_dataset("frames", (len(rows),), h5py.vlen_dtype(np.uint32), **layout)
        for k, row in enumerate(rows):
            frames[k] = row
        frames.attrs.update({"Nx": frame_shape[0], "Ny": frame_shape[1]})
        positions = group.create_dataset("scan_positions", data=np.arange(slow * (fast + 1), dtype=np.int32))
        positions.attrs.update({"Nx": fast + 1, "Ny": slow})


def event_list(patterns: NDArray) -> dict[str, NDArray]:
    """Columns pos, y, x of every count, shuffled."""
    frames = patterns.reshape(-1, *patterns.shape[-2:])
    hit = [pixels_hit(frame) for frame in frames]
    pos = np.repeat(np.arange(len(frames), dtype=np.uint32), [len(pixels) for pixels in hit])
    y, x = np.divmod(np.concatenate(hit), frames.shape[2])
    order = np.random.default_rng(3).permutation(len(pos))
    return {"pos": pos[order], "y": y[order].astype(np.uint16), "x": x[order].astype(np.uint16)}


def event_rows(patterns: NDArray) -> dict[str, NDArray]:
    """Columns indptr, indices, counts: each pixel that is not zero once."""
    frames = patterns.reshape(-1, np.prod(patterns.shape[-2:]))
    hit = [np.flatnonzero(frame) for frame in frames]
    counts = np.concatenate([frame[pixels] for frame, pixels in zip(frames, hit, strict=True)])
    return {"indptr": np.append(0, np.cumsum([len(pixels) for pixels in hit])), "indices": np.concatenate(hit), "counts": counts}


def write_events_hdf5(path: Path, patterns: NDArray, columns: dict[str, NDArray] | None = None, group: str = "/") -> None:
    """An event table (a list, unless ``columns`` are given) with the shapes as attributes."""
    with h5py.File(path, "w") as file:
        place = file.require_group(group)
        for name, column in (event_list(patterns) if columns is None else columns).items():
            place.create_dataset(name, data=column)
        place.attrs.update({"frame_shape": patterns.shape[2:], "scan_shape": patterns.shape[:2], "voltage_kV": 300.0})


def write_events_npz(path: Path, patterns: NDArray, columns: dict[str, NDArray] | None = None) -> None:
    """An event table (a list, unless ``columns`` are given) with the shapes as arrays."""
    columns = event_list(patterns) if columns is None else columns
    np.savez_compressed(path, **columns, frame_shape=patterns.shape[2:], scan_shape=patterns.shape[:2])
