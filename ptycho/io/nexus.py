"""NeXus: the data that a file shows by default. @default names the way to an NXdata group, whose @signal names the array."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ptycho.frames import FrameSource
from ptycho.io import hdf5
from ptycho.io.options import Options
from ptycho.io.units import Dimension, add_dimensions, read_dimension

if TYPE_CHECKING:
    import h5py

_AXES: dict[int, hdf5.Axes] = {3: ("n", "ky", "kx"), 4: ("y", "x", "ky", "kx")}
_MAX_DEPTH = 8


def recognise_nexus(file: h5py.File) -> bool:
    """True when the default signal is a stack of images in this file; a detector's master file only links to one."""
    return _signal(file) is not None


def open_nexus(path: Path, file: h5py.File, options: Options) -> FrameSource:
    """Frames of ``options.dataset``, else of the default signal, with the steps of its axes. Raises DataError for what cannot be frames."""
    name = _signal(file) if options.dataset is None else hdf5.resolve(path, file, options.dataset)
    if name is None:
        return hdf5.open_generic(path, file, options)
    data = file[name]
    header = hdf5.dataset_header(path, "nexus", data)
    header.metadata = hdf5.recipe_attributes(path.name, data)
    add_dimensions(header, _AXES[data.ndim], _dimensions(path, file, data))
    return hdf5.Hdf5Source(file, name, header)


def _signal(file: h5py.File) -> str | None:
    """Name of the default dataset, when it is in this file and can be frames."""
    import h5py

    group: Any = file
    for _ in range(_MAX_DEPTH):
        if not isinstance(group, h5py.Group):
            return None
        if hdf5.text(group, "NX_class") == "NXdata":
            break
        group = hdf5.find(file, f"{group.name.rstrip('/')}/{_next(group)}")
    name = f"{group.name.rstrip('/')}/{_signal_name(group)}" if isinstance(group, h5py.Group) else ""
    data = hdf5.find(file, name)
    return data.name if isinstance(data, h5py.Dataset) and data.ndim in _AXES and data.dtype.kind in "biuf" and data.size else None


def _next(group: h5py.Group) -> str:
    """The child on the way to the default data: what @default names, else the first NXentry or NXdata."""
    import h5py

    default = hdf5.text(group, "default")
    if default:
        return default
    return _first(group, lambda child: isinstance(child, h5py.Group) and hdf5.text(child, "NX_class") in ("NXentry", "NXdata"))


def _signal_name(group: h5py.Group) -> str:
    """What @signal of the group names, else (before 2014) the dataset that has @signal = 1."""
    import h5py

    signal = hdf5.text(group, "signal")
    if signal:
        return signal
    return _first(group, lambda child: isinstance(child, h5py.Dataset) and (hdf5.number(child, "signal") == 1 or hdf5.text(child, "signal") == "1"))


def _first(group: h5py.Group, wanted: Callable[[Any], bool]) -> str:
    """Name of the first child that is wanted, links not followed; "" when there is none among 100."""
    import h5py

    children = (key for key in list(group)[:100] if isinstance(group.get(key, getlink=True), h5py.HardLink))
    return next((str(key) for key in children if wanted(group[key])), "")


def _dimensions(path: Path, file: h5py.File, data: h5py.Dataset) -> list[Dimension]:
    """The axes that @axes of the group names, in the order of the array's; "." stands for none."""
    group = data.parent
    named = np.asarray(group.attrs["axes"]).reshape(-1)[:_MAX_DEPTH].tolist() if "axes" in group.attrs else []
    names = [name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in named]
    if len(names) == 1:
        names = names[0].strip("[]").replace(",", ":").split(":")  # the older way: one text
    if len(names) != data.ndim:
        return []
    places = [f"{group.name.rstrip('/')}/{name.strip()}" for name in names]
    return [read_dimension(path, None if place.endswith("/.") else hdf5.find(file, place), place) for place in places]
