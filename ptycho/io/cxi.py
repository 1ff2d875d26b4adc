"""CXI (Coherent X-ray Imaging) files, and what files of X-ray programs have in common: positions and lengths in metres.

Translations are of the sample: the probe goes the other way. They are in the frame of the laboratory, y up; ``basis_vectors`` say which
way the detector's rows and columns run in it (real files: -y and -x), so that a step along a row is one along a row of the patterns.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.frames import FrameSource, Header, Quantity
from ptycho.geometry import JOULE_PER_EV
from ptycho.io import hdf5
from ptycho.io.options import Options

if TYPE_CHECKING:
    import h5py

_DETECTOR = "entry_1/instrument_1/detector_1"
_DATA = ("entry_1/data_1/data", f"{_DETECTOR}/data", "entry_1/image_1/data")
_TRANSLATION = ("entry_1/data_1/translation", "entry_1/sample_1/geometry_1/translation", f"{_DETECTOR}/translation")
_ENERGY = "entry_1/instrument_1/source_1/energy"
#: The mask's bit for a pixel with a signal above the background: no fault.
_HAS_SIGNAL = 0x1000


def recognise_cxi(file: h5py.File) -> bool:
    """Whether this is a CXI file."""
    return hdf5.find(file, "cxi_version") is not None and hdf5.find(file, "entry_1") is not None


def open_cxi(path: Path, file: h5py.File, options: Options) -> FrameSource:
    """Frames of a CXI file with positions, mask and the angle of a pixel. Raises DataError naming what is there."""
    if options.dataset is not None:
        name = hdf5.resolve(path, file, options.dataset)
    else:
        known = next((name for name in _DATA if hdf5.find(file, name) is not None), None)
        name = hdf5.choose(path, file) if known is None else hdf5.resolve(path, file, known)
    header = hdf5.dataset_header(path, "cxi", file[name])
    _add_positions(path, file, header)
    _add_mask(path, file, header)
    pixel = [hdf5.number(hdf5.find(file, f"{_DETECTOR}/{axis}_pixel_size")) for axis in "yx"]
    add_angle(header, pixel, hdf5.number(hdf5.find(file, f"{_DETECTOR}/distance")), "x_pixel_size / distance")
    energy = hdf5.number(hdf5.find(file, _ENERGY))
    if energy is not None and energy > 0:
        tell_photons(header, energy / JOULE_PER_EV if energy < 1e-10 else energy)  # some write eV in place of J
    if hdf5.find(file, f"{_DETECTOR}/data_dark") is not None:
        header.warnings.append(f"{path.name}: its data_dark is not subtracted; give it as dark when the patterns need it")
    return hdf5.Hdf5Source(file, name, header)


def _add_positions(path: Path, file: h5py.File, header: Header) -> None:
    name = next((name for name in _TRANSLATION if hdf5.find(file, name) is not None), None)
    if name is None:
        return
    moved = read_small(path, file, name, header)
    if moved is None or moved.ndim != 2 or moved.shape[1] not in (2, 3):
        header.warnings.append(f"{path.name}: {name} has no two or three columns and is not used")
        return
    moved = np.pad(moved, ((0, 0), (0, 3 - moved.shape[1])))
    with np.errstate(all="ignore"):  # add_positions looks at the result
        probe = -moved @ _directions(path, file, header).T
    add_positions(header, probe, name)


def _directions(path: Path, file: h5py.File, header: Header) -> NDArray[np.float64]:
    """Unit vectors (2, 3) along the rows' and the columns' index, in the laboratory's x, y, z."""
    usual = np.array([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0]])
    if hdf5.find(file, f"{_DETECTOR}/basis_vectors") is None:
        header.warnings.append(f"{path.name}: there are no basis_vectors; rows are taken to run along -y, columns along -x")
        return usual
    basis = read_small(path, file, f"{_DETECTOR}/basis_vectors", header)
    if basis is not None and basis.ndim == 3 and len(basis):
        basis = basis[0]
    if basis is not None and basis.shape == (3, 2):
        basis = basis.T
    lengths = None if basis is None or basis.shape != (2, 3) else np.linalg.norm(basis, axis=1, keepdims=True)
    if basis is None or lengths is None or not np.isfinite(basis).all() or not lengths.all():
        header.warnings.append(f"{path.name}: its basis_vectors are not two vectors; rows are taken to run along -y, columns along -x")
        return usual
    return basis / lengths


def _add_mask(path: Path, file: h5py.File, header: Header) -> None:
    if hdf5.find(file, f"{_DETECTOR}/mask") is None:
        return
    data = file[hdf5.resolve(path, file, f"{_DETECTOR}/mask")]
    if data.shape != header.frame_shape or data.dtype.kind not in "biu":
        header.warnings.append(f"{path.name}: the mask of the shape {data.shape} does not fit the patterns and is not used")
        return
    mask = hdf5.small_array(path, file, f"{_DETECTOR}/mask").astype(np.int64)
    if (mask & ~_HAS_SIGNAL).any():
        header.bad_pixels = (mask & ~_HAS_SIGNAL) != 0


# What files of X-ray programs have in common


def read_small(path: Path, file: h5py.File, name: str, header: Header) -> NDArray[np.float64] | None:
    """A small dataset of real numbers; None, with a warning when it cannot be read."""
    try:
        values = hdf5.small_array(path, file, name)
        return np.asarray(values, np.float64) if values.dtype.kind in "biuf" else None
    except (DataError, MemoryError, *hdf5.ERRORS) as error:
        header.warnings.append(f"{path.name}: {name} is not used ({str(error)[:80]})")
        return None


def add_positions(header: Header, metres: NDArray[np.float64], name: str, unit_m: float = 1.0) -> None:
    """Give the header probe positions (n_frames, 2) = (y, x), of ``unit_m`` metres each; a warning when they are not usable."""
    where = header.path.name
    with np.errstate(all="ignore"):
        positions = metres * (unit_m * 1e10)
    if metres.shape != (header.n_frames, 2):
        header.warnings.append(f"{where}: {name} has {len(metres)} positions for {header.n_frames} patterns and is not used")
    elif not np.isfinite(positions).all():
        header.warnings.append(f"{where}: {name} has positions that are no finite numbers and is not used")
    elif header.n_frames > 1 and (positions == positions[0]).all():
        header.warnings.append(f"{where}: all positions of {name} are the same; they are not used")
    else:
        header.positions_A = positions


def add_angle(header: Header, pixel_m: list[float | None], distance_m: float | None, name: str) -> None:
    """Give the header the angle of a pixel and the camera length, from the pixel's height and width and the detector's distance."""
    source = f"{header.path.name}: {name}"
    height, width = (value if value is not None and value > 0 else None for value in pixel_m)
    height, width = height or width, width or height
    if distance_m is None or distance_m <= 0:
        return
    header.metadata["camera_length_m"] = Quantity(distance_m, "m", f"{header.path.name}: distance")
    if height is None or width is None:
        return
    if abs(height / width - 1) > 0.01:
        header.warnings.append(f"{header.path.name}: its pixels of {height:g} x {width:g} m are not square; give pixel_mrad")
        return
    angle = (height + width) / 2 / distance_m * 1e3
    if math.isfinite(angle):
        header.metadata["pixel_mrad"] = Quantity(angle, "mrad", source)


def tell_photons(header: Header, energy_eV: float) -> None:
    """Warn that the patterns are of photons."""
    header.warnings.append(f"{header.path.name}: an X-ray data set (photons of {energy_eV / 1e3:.4g} keV); electrons are what is modelled here")
