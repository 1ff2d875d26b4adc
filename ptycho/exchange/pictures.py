"""The phase for programs that show images: TIFF with ImageJ's or OME's scale, NumPy arrays."""

from __future__ import annotations

import io

import numpy as np

from ptycho.io.result_file import phase_tiff
from ptycho.result import Result


def encode_imagej(result: Result) -> memoryview:
    """phase (slices, y, x), float32 in rad, with ImageJ's scale in Å: the same as the run's phase.tif."""
    return phase_tiff(result)


def encode_ome(result: Result) -> memoryview:
    """OME-TIFF: phase and amplitude as channels (C, Z, Y, X), float32, pixel and slice distance in Å."""
    import tifffile

    pixel = {f"PhysicalSize{axis}": result.pixel_A for axis in "XY"} | {f"PhysicalSize{axis}Unit": "Å" for axis in "XYZ"}
    metadata = {"axes": "CZYX", "Channel": {"Name": ["phase (rad)", "amplitude"]}, "PhysicalSizeZ": float(result.slice_thickness_A.mean()), **pixel}
    content = io.BytesIO()
    channels = np.stack([result.phase, result.amplitude])
    per_cm = 1e8 / result.pixel_A
    scale = (per_cm, per_cm)
    tifffile.imwrite(content, channels, ome=True, metadata=metadata, photometric="minisblack", resolution=scale, resolutionunit="CENTIMETER")
    return content.getbuffer()


def encode_npy(result: Result) -> memoryview:
    """phase (slices, y, x) alone, float32 in rad."""
    content = io.BytesIO()
    np.save(content, result.phase, allow_pickle=False)
    return content.getbuffer()


def encode_npz(result: Result) -> memoryview:
    """All arrays by their names in :class:`ptycho.Result`, with their units in the names of the lengths."""
    content = io.BytesIO()
    names = ("object", "occupancy", "pixel_A", "slice_thickness_A", "probe", "positions_A", "tilt_mrad", "voltage_kV", "semiangle_mrad")
    arrays = {name: np.asarray(getattr(result, name)) for name in names}
    np.savez_compressed(content, allow_pickle=False, phase=result.phase, amplitude=result.amplitude, **arrays)
    return content.getbuffer()
