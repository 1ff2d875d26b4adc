"""A minimal NeXus file."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np


def write_nexus(path: Path, patterns, units=("nm", "nm", "1/nm", "1/nm"), named=True):
    """NXentry, NXdata and the array with its axes; ``named``: the way to it is by @default, else by class and by the dataset's @signal = 1."""
    with h5py.File(path, "w") as file:
        entry = file.create_group("scan_1")
        entry.attrs["NX_class"] = "NXentry"
        group = entry.create_group("detector")
        group.attrs["NX_class"] = "NXdata"
        group["counts"] = patterns
        names = ("y", "x", "ky", "kx")[4 - patterns.ndim :]
        for name, length, step, unit in zip(
            names, patterns.shape, (0.2, 0.3, 0.5, 0.5)[4 - patterns.ndim :], units[4 - patterns.ndim :], strict=True
        ):
            group[name] = np.arange(length) * step
            group[name].attrs["units"] = unit
        if named:
            file.attrs["default"], entry.attrs["default"], group.attrs["signal"], group.attrs["axes"] = "scan_1", "detector", "counts", list(names)
        else:
            group["counts"].attrs["signal"], group.attrs["axes"] = 1, ":".join(names)
    return path
