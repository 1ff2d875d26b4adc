"""Velox EMD (Thermo Fisher): stacks of images /Data/Image/<uuid>/Data (rows, columns, frames), with a JSON text for each frame."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ptycho.errors import DataError
from ptycho.frames import FrameSource, Header, Quantity
from ptycho.io import hdf5
from ptycho.io.options import Options
from ptycho.io.units import Dimension, add, add_dimensions, json_number, json_object, json_value

if TYPE_CHECKING:
    import h5py

_AXES = ("ky", "kx", "n")
_MAX_TEXT_BYTES = 1 << 22


def recognise_velox(file: h5py.File) -> bool:
    """True when there are images where Velox puts them."""
    return bool(_images(file))


def open_velox(path: Path, file: h5py.File, options: Options) -> FrameSource:
    """Frames of ``options.dataset``, else of the only stack of images. Raises DataError when there are several, or none."""
    name = _choose(path, file) if options.dataset is None else hdf5.resolve(path, file, options.dataset)
    data = file[name]
    header = hdf5.dataset_header(path, "velox", data, _AXES if data.ndim == 3 else None)
    header.metadata = hdf5.recipe_attributes(path.name, data)
    if data.ndim == 3:
        _add_metadata(header, _first_text(path, file, f"{data.parent.name.rstrip('/')}/Metadata"))
    return hdf5.Hdf5Source(file, name, header, _AXES if data.ndim == 3 else None)


def _images(file: h5py.File) -> dict[str, h5py.Dataset]:
    import h5py

    group = hdf5.find(file, "Data/Image")
    found = hdf5.datasets(group, "/Data/Image/") if isinstance(group, h5py.Group) else {}
    return {name: item for name, item in found.items() if name.endswith("/Data") and item.ndim == 3 and item.dtype.kind in "biuf" and item.size}


def _choose(path: Path, file: h5py.File) -> str:
    images = _images(file)
    stacks = {name: item for name, item in images.items() if item.shape[2] > 1}
    if not stacks:
        raise DataError(f"{path}: there are single images but no stack of patterns; it has {hdf5.listed(images)}; open the detector's own file")
    if len(stacks) > 1:
        raise DataError(f"{path}: which stack holds the patterns? It has {hdf5.listed(stacks)}; write {path.name}::NAME")
    return next(iter(stacks))


def _first_text(path: Path, file: h5py.File, name: str) -> dict[str, Any]:
    """The JSON of the first frame: a column of bytes that ends in NULs."""
    import h5py

    item = hdf5.find(file, name)
    if not isinstance(item, h5py.Dataset) or item.ndim != 2 or item.dtype != np.uint8 or not item.size:
        return {}
    hdf5.check(path, item)
    return json_object(item[:_MAX_TEXT_BYTES, 0].tobytes())


def _add_metadata(header: Header, said: dict[str, Any]) -> None:
    """Values are SI units, mostly as text. Thermo Fisher's defocus is negative for underfocus, and both it and the rotation are nominal."""
    for key, name, factor, trusted in (
        ("voltage_kV", "Optics.AccelerationVoltage", 1e-3, True),
        ("semiangle_mrad", "Optics.BeamConvergence", 1e3, True),
        ("camera_length_m", "Optics.CameraLength", 1.0, False),
        ("exposure_ms", "Scan.DwellTime", 1e3, True),
    ):
        value = json_number(said, name, factor)
        add(header, key, value if value and value > 0 else None, name, trusted)
    add(header, "defocus_A", json_number(said, "Optics.Defocus", -1e10), "Optics.Defocus (sign changed)", trusted=False)
    add(header, "rotation_deg", json_number(said, "Scan.ScanRotation", 180 / math.pi), "Scan.ScanRotation", trusted=False)
    unit = json_value(said, "BinaryResult.PixelUnitX")
    pixel = [json_number(said, f"BinaryResult.PixelSize.{side}") for side in ("height", "width")]
    source = "BinaryResult.PixelSize"
    add_dimensions(header, ("ky", "kx"), [Dimension(step, unit if isinstance(unit, str) else None, source=source) for step in pixel])
    height, width = (json_number(said, f"Scan.ScanSize.{side}") for side in ("height", "width"))
    if height and width and height >= 1 and width >= 1 and height * width == header.n_frames:
        header.scan_shape = int(height), int(width)
        header.metadata["scan_shape"] = Quantity(header.scan_shape, "", f"{header.path.name}: Scan.ScanSize")
