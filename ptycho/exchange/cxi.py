"""CXI 1.6: the object as an image, the probe as the source's illumination, translations of the sample in metres."""

from __future__ import annotations

import h5py
import numpy as np

from ptycho.exchange.formats import mean_object
from ptycho.exchange.hdf5 import Data, tree_bytes
from ptycho.geometry import JOULE_PER_EV, wavelength_A
from ptycho.result import Result


def encode_cxi(result: Result) -> bytes:
    """Object (slices, y, x), probe (modes, y, x) and translations (n, 3) = (x, y, z) of the sample.

    The sample goes the other way than the probe, and the laboratory's axes the other way than rows and columns: the signs cancel.
    """
    slices, height, width = (object_ := mean_object(result)).shape
    extent = np.array([width, height]) * result.pixel_A * 1e-10
    translation = np.concatenate([result.positions_A[:, ::-1] * 1e-10, np.zeros((len(result.positions_A), 1))], 1)
    image = {
        "data": Data(object_),
        "data_type": "transmission",
        "data_space": "real",
        "image_size": np.array([*extent, float(result.slice_thickness_A.sum()) * 1e-10]),
        "pixel_size": np.full(2, result.pixel_A * 1e-10),
        "slice_distance": result.slice_thickness_A * 1e-10,
        "dimensionality": np.int64(3 if slices > 1 else 2),
        "is_fft_shifted": np.int64(0),
    }
    source = {
        "energy": np.float64(result.voltage_kV * 1e3 * JOULE_PER_EV),
        "wavelength": np.float64(wavelength_A(result.voltage_kV) * 1e-10),
        "probe": "electron",
        "illumination": Data(result.probe),
        "illumination_pixel_size": np.full(2, result.pixel_A * 1e-10),
    }
    entry = {
        "title": "ptychography",
        "program_name": "ptycho",
        "image_1": image,
        "instrument_1": {"source_1": source},
        "sample_1": {"geometry_1": {"translation": translation}},
        "data_1": {"data": h5py.SoftLink("/entry_1/image_1/data"), "translation": h5py.SoftLink("/entry_1/sample_1/geometry_1/translation")},
    }
    return tree_bytes({"cxi_version": np.int64(160), "entry_1": entry})
