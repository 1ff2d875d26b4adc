"""Master and data files as DECTRIS detectors write them, and the scan software's file beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray

DETECTOR = "entry/instrument/detector"


def write_dectris(
    path_master: Path,
    patterns: NDArray[Any],
    *,
    frames_per_file: int = 1000,
    voltage_kV: float = 300.0,
    mask: NDArray[Any] | None = None,
    dtype: str = "u4",
    triggers: tuple[int, int] | None = None,
    saturation_value: int = 8352,
    scan: Mapping[str, float] | None = None,
) -> list[Path]:
    """Write counts (slow, fast, ky, kx) to X_master.h5, X_data_000001.h5 ... and, with ``scan``, X.h5; the data files' paths.

    ``triggers`` are (ntrigger, nimages), (slow, fast) by default; pixels of ``mask`` (ky, kx) that are not 0 get the type's maximum.
    """
    slow, fast, *frame_shape = patterns.shape
    ky, kx = frame_shape
    mask = np.zeros((ky, kx), "u4") if mask is None else mask.astype("u4")
    frames = patterns.reshape(-1, ky, kx).astype(dtype)
    frames[:, mask != 0] = np.iinfo(dtype).max
    stem = path_master.stem.removesuffix("_master")
    paths = []
    for number, start in enumerate(range(0, len(frames), frames_per_file), 1):
        paths.append(path_master.with_name(f"{stem}_data_{number:06d}.h5"))
        write_data_file(paths[-1], frames[start : start + frames_per_file], start + 1)
    with h5py.File(path_master, "w") as file:
        group = file.create_group("entry/data")
        for number, path in enumerate(paths, 1):
            group[f"data_{number:06d}"] = h5py.ExternalLink(path.name, "/entry/data/data")
        n_triggers, n_images = triggers or (slow, fast)
        values = {
            "detectorSpecific/photon_energy": voltage_kV * 1e3, "detectorSpecific/ntrigger": n_triggers, "detectorSpecific/nimages": n_images,
            "count_time": 1e-4, "frame_time": 1.001e-4, "x_pixel_size": 1e-4, "y_pixel_size": 1e-4, "detector_distance": 0.0,
            "saturation_value": saturation_value, "bit_depth_image": 8 * frames.itemsize, "countrate_correction_applied": 1,
            "flatfield_correction_applied": 0, "pixel_mask_applied": 1,
        }  # fmt: skip
        for name, value in values.items():
            file[f"{DETECTOR}/{name}"] = value
        file[f"{DETECTOR}/detectorSpecific/pixel_mask"] = mask
        file[f"{DETECTOR}/detectorSpecific/flatfield"] = np.ones((ky, kx), "f4")
    if scan is not None:
        write_scan(path_master.with_name(f"{stem}.h5"), scan)
    return paths


def write_data_file(path: Path, frames: NDArray[Any], first: int = 1) -> None:
    """Write frames (n, ky, kx), or (n, channel, ky, kx), whose images are numbered from ``first``, packed by bitshuffle and LZ4."""
    with h5py.File(path, "w") as file:
        chunks = (1, *frames.shape[1:])
        data = file.create_dataset("entry/data/data", data=frames, chunks=chunks, compression=hdf5plugin.Bitshuffle(cname="lz4"))
        data.attrs["image_nr_low"], data.attrs["image_nr_high"] = first, first + len(frames) - 1


def write_scan(path: Path, scan: Mapping[str, float]) -> None:
    """Write the scan software's file: attributes of one number each, by its own names."""
    with h5py.File(path, "w") as file:
        for name, value in scan.items():
            file.require_group("STEM Metadata").attrs[name] = np.array([value])
