"""Files of PtyRAD and PtyLab.

PtyRAD reads what any reader here reads; what it writes, ``model_iter*.hdf5``, holds no patterns. PtyLab's file has ``ptychogram``
(n, ky, kx), ``encoder`` (n, 2) = (y, x) of the probe, ``dxd`` (detector pixel) and ``zo`` (distance), all lengths in metres.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ptycho.errors import DataError
from ptycho.frames import FrameSource
from ptycho.io import hdf5
from ptycho.io.cxi import add_angle, add_positions, read_small
from ptycho.io.options import Options

if TYPE_CHECKING:
    import h5py

#: Wavelengths above this, in metres, are not of electrons.
_LONGEST_M = 1e-11


def recognise_ptyrad(file: h5py.File) -> bool:
    """Whether this is a result of PtyRAD."""
    return hdf5.find(file, "optimizable_tensors") is not None and hdf5.find(file, "model_attributes") is not None


def open_ptyrad(path: Path, file: h5py.File, options: Options) -> FrameSource:
    """Raises DataError: a result has no patterns."""
    raise DataError(f"{path}: this is a result of PtyRAD, not patterns; open the data that it was reconstructed from")


def recognise_ptylab(file: h5py.File) -> bool:
    """Whether this is data of PtyLab."""
    return hdf5.find(file, "ptychogram") is not None and hdf5.find(file, "encoder") is not None


def open_ptylab(path: Path, file: h5py.File, options: Options) -> FrameSource:
    """Frames of PtyLab with positions and the angle of a pixel. Raises DataError for Fourier ptychography."""
    if hdf5.find(file, "zled") is not None:
        raise DataError(f"{path}: these are images of Fourier ptychography, not diffraction patterns")
    name = hdf5.resolve(path, file, options.dataset or "ptychogram")
    header = hdf5.dataset_header(path, "ptylab", file[name])
    encoder = read_small(path, file, "encoder", header)
    if encoder is not None and encoder.shape == (2, header.n_frames) and header.n_frames != 2:
        encoder = encoder.T
    if encoder is not None:
        add_positions(header, encoder, "encoder")
    pixel = hdf5.number(hdf5.find(file, "dxd"))
    add_angle(header, [pixel, pixel], hdf5.number(hdf5.find(file, "zo")), "dxd / zo")
    wavelength = hdf5.number(hdf5.find(file, "wavelength"))
    if wavelength is not None and wavelength > _LONGEST_M:
        header.warnings.append(f"{path.name}: light of a wavelength of {wavelength * 1e9:.4g} nm; electrons are what is modelled here")
    return hdf5.Hdf5Source(file, name, header)
