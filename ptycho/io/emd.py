"""EMD files with a datacube: EMD 1.0 (py4DSTEM 0.14 and later), py4DSTEM 0.x, Prismatic, and Berkeley's EMD 0.2 (NCEM, HyperSpy).

All have a group with the array ``data`` (or ``datacube``) and one dataset for each axis: dim0, dim1, ... in EMD 1.0 and dim1, dim2, ...
before. A dim of two numbers is [first, second]; its length says nothing. Axis 0, py4DSTEM's Rx, is the slow scan axis. HyperSpy writes
EMD 0.2 with the axes in reverse order, so the detector comes first there.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ptycho.errors import DataError
from ptycho.frames import FrameSource, Header
from ptycho.geometry import wavelength_A
from ptycho.io import hdf5
from ptycho.io.options import Options
from ptycho.io.units import Dimension, add, add_dimensions, finite, parse_unit, read_dimension

if TYPE_CHECKING:
    import h5py

_NAMES = ("data", "datacube")
_OLD = ("4DSTEM_experiment", "4DSTEM_simulation", "4D-STEM_data")


def recognise_emd(file: h5py.File) -> bool:
    """True when there is at least one array of diffraction patterns in a group as EMD has them."""
    return bool(_datacubes(file))


def open_emd(path: Path, file: h5py.File, options: Options) -> FrameSource:
    """Frames of ``options.dataset``, else of the only datacube, with what its axes and the calibration group say.

    Raises DataError when there are several datacubes, naming them, or when the dataset cannot be frames.
    """
    name = _choose(path, file) if options.dataset is None else hdf5.resolve(path, file, options.dataset)
    data = file[name]
    dimensions = _dimensions(path, file, data)
    axes = _axes(data.ndim, dimensions)
    header = hdf5.dataset_header(path, "emd", data, axes)
    header.metadata = hdf5.recipe_attributes(path.name, data)
    if axes is not None:
        add_dimensions(header, axes, dimensions)
    for group in _calibration_groups(file, data):
        _add_calibration(header, group)
    _add_prismatic(header, file, data)
    _add_mask(header, path, file, data)
    _add_positions(header, path, file, data)
    return hdf5.Hdf5Source(file, name, header, axes)


def _datacubes(file: h5py.File) -> dict[str, h5py.Dataset]:
    """The arrays that can be patterns: all of 4 axes, else those of 3 whose last two are not lengths."""
    arrays = {name: item for name, item in hdf5.datasets(file).items() if name.rsplit("/", 1)[-1] in _NAMES and _is_array(name, item)}
    cubes = {name: item for name, item in arrays.items() if item.ndim == 4}
    return cubes or {name: item for name, item in arrays.items() if not _is_image_stack(file, item)}


def _is_array(name: str, item: h5py.Dataset) -> bool:
    in_group = "emd_group_type" in item.parent.attrs or (name.startswith(_OLD) and "/datacubes/" in name)
    return in_group and item.ndim in (3, 4) and item.dtype.kind in "biuf" and item.size > 0


def _is_image_stack(file: h5py.File, data: h5py.Dataset) -> bool:
    """True for real-space images, as virtual detectors and reconstructions are."""
    units = [parse_unit(dimension.unit) for dimension in _dimensions(Path(file.filename), file, data)]
    return sum(unit is not None and unit[0] == "length" for unit in units) >= 2


def _choose(path: Path, file: h5py.File) -> str:
    cubes = _datacubes(file)
    if not cubes:
        raise DataError(f"{path}: there is no datacube; the file has {hdf5.listed(hdf5.datasets(file))}; write {path.name}::NAME")
    if len(cubes) > 1:
        raise DataError(f"{path}: there are {len(cubes)} datacubes: {hdf5.listed(cubes)}; write {path.name}::NAME")
    return next(iter(cubes))


def _dimensions(path: Path, file: h5py.File, data: h5py.Dataset) -> list[Dimension]:
    """What the dim datasets beside ``data`` say, one for each of its axes."""
    group = data.parent.name.rstrip("/")
    first = 0 if hdf5.find(file, f"{group}/dim0") is not None else 1
    names = [f"{group}/dim{first + axis}" for axis in range(data.ndim)]
    return [read_dimension(path, hdf5.find(file, name), name) for name in names]


def _axes(n_axes: int, dimensions: list[Dimension]) -> hdf5.Axes | None:
    """The axes in their order in the file; None when they are too few or too many."""
    axes: dict[int, hdf5.Axes] = {3: ("n", "ky", "kx"), 4: ("y", "x", "ky", "kx")}
    if n_axes not in axes:
        return None
    detector = [dimension.is_detector for dimension in dimensions]
    return axes[n_axes][::-1] if detector[0] and detector[1] and not detector[-1] else axes[n_axes]


# Calibration


def _calibration_groups(file: h5py.File, data: h5py.Dataset) -> list[h5py.Group]:
    """The groups that may hold calibration, nearest first: EMD 1.0's bundles, then the places of older versions."""
    import h5py

    parts = [part for part in data.name.split("/") if part]
    parents = ["/".join(parts[:depth]) for depth in range(len(parts) - 1, -1, -1)]
    places = [f"{parent}/metadatabundle" for parent in parents]
    places += [f"{parts[0]}/metadata/metadata_0", f"{parts[0]}/metadata", ""]
    found = [hdf5.find(file, f"{place}/{kind}") for place in places for kind in ("calibration", "microscope")]
    return [group for group in found if isinstance(group, h5py.Group)]


def _value(group: h5py.Group, names: tuple[str, ...]) -> tuple[str, Any]:
    """(name, number, text or None) of the first of the names that is an attribute or a dataset of the group."""
    import h5py

    for name in names:
        item = group[name] if isinstance(group.get(name, getlink=True), h5py.HardLink) else None
        for source, key in ((group, name), (item, "")):
            number = hdf5.number(source, key)
            found = hdf5.text(source, key) if number is None else number
            if found is not None and found != "":
                return f"{group.name} {name}", found
    return "", None


def _add_calibration(header: Header, group: h5py.Group) -> None:
    """The values of py4DSTEM's calibration and microscope groups, of all its versions."""
    _add_pixel_sizes(header, group)
    source, voltage = _value(group, ("accelerating_voltage", "beam_energy"))
    volts = finite(voltage)
    if volts is not None and volts > 0:
        add(header, "voltage_kV", volts / 1e3 if volts > 3000 else volts, source)  # V in py4DSTEM, kV as people type it
    source, angle = _value(group, ("probe_convergence_semiangle_mrad", "convergence_semiangle_mrad"))
    add(header, "semiangle_mrad", _positive(angle), source)
    source, degrees = _value(group, ("QR_rotation_degrees", "R_to_K_rotation_degrees"))
    if finite(degrees) is None:
        source, radians = _value(group, ("QR_rotation",))
        degrees = finite(radians, 180 / math.pi)
    add(header, "rotation_deg", finite(degrees), source, trusted=False)  # py4DSTEM turns its own axes, and the sense depends on the version
    _, flip = _value(group, ("QR_flip",))
    if finite(flip):
        header.warnings.append(f"{header.path.name}: py4DSTEM found the detector's axes exchanged (QR_flip); check transpose")
    _add_disk(header, group)


def _add_pixel_sizes(header: Header, group: h5py.Group) -> None:
    """One pixel size for both scan axes, one for both detector axes."""
    for letters, axes in (("R",), ("y", "x")), (("Q", "K"), ("ky", "kx")):
        source, size = _value(group, tuple(f"{letter}_{name}" for letter in letters for name in ("pixel_size", "pix_size")))
        units = ("pixel_units", "pix_units", "pixel_size_units", "pix_size_units")
        _, unit = _value(group, tuple(f"{letter}_{name}" for letter in letters for name in units))
        dimension = Dimension(finite(size), unit if isinstance(unit, str) else None, source=source)
        add_dimensions(header, axes, [dimension, dimension])


def _add_disk(header: Header, group: h5py.Group) -> None:
    """py4DSTEM's ``probe_semiangle`` is a radius in detector pixels, fitted: an angle only with the size of a pixel."""
    source, radius = _value(group, ("probe_semiangle",))
    pixels, known = _positive(radius), header.metadata
    if pixels is None:
        return
    if "pixel_mrad" in known:
        add(header, "semiangle_mrad", pixels * known["pixel_mrad"].value, f"{source} x pixel", trusted=False)
    elif "pixel_invA" in known and "voltage_kV" in known and known["voltage_kV"].value > 0:
        angle = pixels * known["pixel_invA"].value * wavelength_A(known["voltage_kV"].value) * 1e3
        add(header, "semiangle_mrad", angle, f"{source} x pixel", trusted=False)


def _add_prismatic(header: Header, file: h5py.File, data: h5py.Dataset) -> None:
    """What a Prismatic simulation was run with: E in kV, sa in mrad, df in Å with exp(-i pi lambda df q^2), so df > 0 is overfocus."""
    group = hdf5.find(file, f"{data.name.strip('/').split('/')[0]}/metadata/metadata_0/original/simulation_parameters")
    if group is None:
        return
    add(header, "voltage_kV", _positive(hdf5.number(group, "E")), f"{group.name} E")
    add(header, "semiangle_mrad", _positive(hdf5.number(group, "sa")), f"{group.name} sa")
    defocus = hdf5.number(group, "df")
    add(header, "defocus_A", None if defocus is None else -defocus, f"{group.name} df", trusted=False)


def _positive(value: Any) -> float | None:
    number = finite(value)
    return number if number is not None and number > 0 else None


# What stands beside the array in files of write_emd


def _add_mask(header: Header, path: Path, file: h5py.File, data: h5py.Dataset) -> None:
    """The dataset ``mask`` (ky, kx), 1 = use."""
    mask = _beside(file, data, "mask")
    if mask is not None and mask.shape == header.frame_shape and mask.dtype.kind in "biu":
        header.bad_pixels = hdf5.small_array(path, file, mask.name) == 0


def _add_positions(header: Header, path: Path, file: h5py.File, data: h5py.Dataset) -> None:
    """The dataset ``positions_A`` (n_frames, 2) of y, x in Å."""
    positions = _beside(file, data, "positions_A")
    if positions is not None and positions.shape == (header.n_frames, 2) and positions.dtype.kind in "iuf":
        values = hdf5.small_array(path, file, positions.name).astype(np.float64)
        if np.isfinite(values).all():
            header.positions_A = values
        else:
            header.warnings.append(f"{path.name}: {positions.name} is not used: some of its positions are not finite")


def _beside(file: h5py.File, data: h5py.Dataset, name: str) -> h5py.Dataset | None:
    import h5py

    item = hdf5.find(file, f"{data.parent.name.rstrip('/')}/{name}")
    return item if isinstance(item, h5py.Dataset) else None
