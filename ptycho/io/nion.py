"""Nion Swift: .ndata (a zip of data.npy and metadata.json), .h5 (/data) and .nhdf (/data/0, /data/1, ...) with the JSON as an attribute."""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptycho.errors import DataError
from ptycho.frames import FrameSource, Header
from ptycho.io import hdf5
from ptycho.io.files import unreadable
from ptycho.io.numpy_file import open_npz
from ptycho.io.options import Options
from ptycho.io.units import Dimension, add, add_dimensions, finite, json_number, json_object, json_value

if TYPE_CHECKING:
    import h5py

_MAX_TEXT_BYTES = 1 << 22
_ZIP_ERRORS = (OSError, ValueError, EOFError, KeyError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)


def open_ndata(path: Path, options: Options) -> FrameSource:
    """Frames of an .ndata file. Raises DataError for other files and for data that are no images."""
    if options.dataset is not None:
        raise DataError(f"{path}: an .ndata file has one array; remove ::{options.dataset}")
    source = open_npz(path, Options(dataset="data"))
    source.header.format = "ndata"
    _add_properties(source.header, _zipped_properties(path), 2 if source.header.scan_shape is None else 3)
    return source


def _zipped_properties(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            if "metadata.json" not in archive.namelist():
                return {}
            with archive.open("metadata.json") as member:
                return json_object(member.read(_MAX_TEXT_BYTES))
    except _ZIP_ERRORS as error:
        raise unreadable(path, error, "its metadata.json cannot be read") from None


def recognise_nion(file: h5py.File) -> bool:
    """True when /data, or what is in it, has Nion's properties."""
    return bool(_items(file))


def open_nion(path: Path, file: h5py.File, options: Options) -> FrameSource:
    """Frames of ``options.dataset``, else of the only item of 3 or 4 axes. Raises DataError when there are several, or none."""
    name = _choose(path, file) if options.dataset is None else hdf5.resolve(path, file, options.dataset)
    data = file[name]
    header = hdf5.dataset_header(path, "nion", data)
    header.metadata = hdf5.recipe_attributes(path.name, data)
    _add_properties(header, _properties(data), data.ndim - 1)
    return hdf5.Hdf5Source(file, name, header)


def _items(file: h5py.File) -> dict[str, h5py.Dataset]:
    import h5py

    data = hdf5.find(file, "data")
    found = hdf5.datasets(data, "/data/") if isinstance(data, h5py.Group) else {"/data": data} if isinstance(data, h5py.Dataset) else {}
    return {name: item for name, item in found.items() if "properties" in item.attrs}


def _choose(path: Path, file: h5py.File) -> str:
    items = _items(file)
    stacks = {name: item for name, item in items.items() if item.ndim in (3, 4) and item.dtype.kind in "biuf" and item.size}
    stacks = {name: item for name, item in stacks.items() if item.ndim == 4} or stacks
    if not stacks:
        raise DataError(f"{path}: there is no item of 3 or 4 axes of real numbers; the file has {hdf5.listed(items)}")
    if len(stacks) > 1:
        raise DataError(f"{path}: which item holds the patterns? The file has {hdf5.listed(stacks)}; write {path.name}::NAME")
    return next(iter(stacks))


def _properties(data: h5py.Dataset) -> dict[str, Any]:
    """The JSON attribute; it may be longer than ``hdf5.text`` allows."""
    value = data.attrs.get("properties", "")
    return json_object(value) if isinstance(value, str | bytes) else {}


def _add_properties(header: Header, properties: dict[str, Any], last_axis: int) -> None:
    """Axes and instrument. ``last_axis`` is the number of the array's last axis."""
    for older in (json_value(properties, "data_source"), *_listed(properties.get("data_sources"))):
        properties = older if "dimensional_calibrations" not in properties and isinstance(older, dict) else properties
    datum_axes = finite(properties.get("datum_dimension_count"))
    if datum_axes is not None and datum_axes != 2:
        raise DataError(f"{header.path}: its data have {datum_axes:g} axes for each point of the scan; patterns with 2 are needed")
    calibrations = _listed(properties.get("dimensional_calibrations"))
    if len(calibrations) == last_axis + 1:
        axes = ("n", "ky", "kx") if last_axis == 2 else ("y", "x", "ky", "kx")
        add_dimensions(header, axes, [_dimension(item) for item in calibrations])
    _add_instrument(header, json_value(properties, "metadata"))


def _listed(value: Any) -> list[Any]:
    return value[:8] if isinstance(value, list) else []


def _dimension(item: Any) -> Dimension:
    unit = json_value(item, "units")
    return Dimension(json_number(item, "scale"), unit if isinstance(unit, str) else None, source="dimensional_calibrations")


def _add_instrument(header: Header, said: Any) -> None:
    """Values are SI units. Nion's defocus is the aberration C10, of which ours is the negative."""
    for key, names, factor, trusted in (
        ("voltage_kV", ("instrument.high_tension", "hardware_source.autostem.high_tension_v", "hardware_source.autostem.high_tension"), 1e-3, True),
        ("semiangle_mrad", ("instrument.convergence_angle", "hardware_source.convergence_angle_rad"), 1e3, True),
        ("beam_current_pA", ("instrument.beam_current", "hardware_source.beam_current_a"), 1e12, True),
        ("exposure_ms", ("hardware_source.exposure",), 1e3, True),
        ("adu_per_electron", ("hardware_source.counts_per_electron",), 1.0, False),
    ):
        for name in names:
            value = json_number(said, name, factor)
            add(header, key, value if value and value > 0 else None, name, trusted)
    for name in ("instrument.defocus", "hardware_source.defocus_m"):
        add(header, "defocus_A", json_number(said, name, -1e10), f"{name} (sign changed)", trusted=False)
    for name in ("scan.rotation", "hardware_source.rotation"):
        add(header, "rotation_deg", json_number(said, name, 180 / math.pi), name, trusted=False)
