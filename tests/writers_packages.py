"""Writers, for tests, of files as other ptychography packages have them. Patterns are (slow, fast, ky, kx), positions (n, 2) = (y, x) in Å."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np


def write_foldslice(folder: Path, patterns, positions=None, unit_A: float = 1.0, label: str = "0_Ndp32") -> Path:
    """The pair of fold_slice: frames with scan y fast and their axes reversed, positions in units of ``unit_A``."""
    slow, fast, height, width = np.shape(patterns)
    path = folder / f"data_roi{label}_dp.hdf5"
    with h5py.File(path, "w") as file:
        frames = np.swapaxes(patterns, 0, 1).reshape(-1, height, width).swapaxes(1, 2)
        file.create_dataset("dp", data=frames, chunks=(1, width, height), compression=4)
    if positions is not None:
        y, x = np.reshape(positions, (slow, fast, 2)).transpose(2, 1, 0).reshape(2, -1) / unit_A
        with h5py.File(folder / f"data_roi{label}_para.hdf5", "w") as file:
            file["ppX"], file["ppY"] = x[None], y[None]
    return path


def write_ptychi(folder: Path, patterns, positions, pixel_A: float = 0.5) -> Path:
    """The pair of pty-chi and ptychodus."""
    path = folder / "scan_ptychodus_dp.hdf5"
    with h5py.File(path, "w") as file:
        file["dp"] = np.reshape(patterns, (-1, *np.shape(patterns)[-2:]))
    with h5py.File(folder / "scan_ptychodus_para.hdf5", "w") as file:
        file["object"] = np.ones((1, 8, 8), complex)
        file["object"].attrs["pixel_height_m"] = pixel_A * 1e-10
        file["probe_position_y_m"], file["probe_position_x_m"] = np.reshape(positions, (-1, 2)).T * 1e-10
    return path


def write_cxi(path: Path, patterns, positions, mask=None, basis=((0, -1, 0), (-1, 0, 0)), distance_m: float = 2.0, pixel_m: float = 1e-4) -> Path:
    """A CXI file: translations of the sample in a laboratory where ``basis`` are the directions of rows and columns."""
    directions = np.array(basis, float)
    with h5py.File(path, "w") as file:
        file["cxi_version"] = 160
        detector = file.create_group("entry_1/instrument_1/detector_1")
        detector["data"] = np.reshape(patterns, (-1, *np.shape(patterns)[-2:]))
        detector["distance"], detector["x_pixel_size"], detector["y_pixel_size"] = distance_m, pixel_m, pixel_m
        detector["basis_vectors"] = directions.T * pixel_m
        if mask is not None:
            detector["mask"] = np.asarray(mask, "u4")
        file["entry_1/instrument_1/source_1/energy"] = np.float32(1.602176634e-16 * 8)
        file["entry_1/sample_1/geometry_1/translation"] = -np.reshape(positions, (-1, 2)) @ directions * 1e-10
        file["entry_1/data_1/data"] = h5py.SoftLink("/entry_1/instrument_1/detector_1/data")
        file["entry_1/data_1/translation"] = h5py.SoftLink("/entry_1/sample_1/geometry_1/translation")
    return path


def write_ptyd(path: Path, patterns, positions, per_chunk: int = 5, linked: bool = False, weights=None) -> Path:
    """PtyPy's prepared data in chunks; ``linked``: each in a file of its own beside it, as ``save="link"`` does."""
    frames = np.reshape(patterns, (-1, *np.shape(patterns)[-2:]))
    with h5py.File(path, "w") as file:
        file["meta/energy"], file["meta/distance"], file["meta/psize"] = 6.2, 7.0, [1.72e-4, 1.72e-4]
        file["meta/center"] = "None"
        for k, first in enumerate(range(0, len(frames), per_chunk)):
            part = slice(first, first + per_chunk)
            content = {"data": frames[part], "indices": np.arange(len(frames))[part], "positions": np.reshape(positions, (-1, 2))[part] * 1e-10}
            content["weights"] = np.zeros(0) if weights is None else np.broadcast_to(weights, frames[part].shape)
            if linked:
                name = f"{path.name}.part{k:03d}"
                with h5py.File(path.with_name(name), "w") as other:
                    for key, value in content.items():
                        other[key] = value
                file[f"chunks/{k}"] = h5py.ExternalLink(f"/home/somebody/{name}", "/")
            else:
                for key, value in content.items():
                    file[f"chunks/{k}/{key}"] = value
    return path


def write_ptylab(path: Path, patterns, positions) -> Path:
    """Data of PtyLab."""
    with h5py.File(path, "w") as file:
        file["ptychogram"] = np.reshape(patterns, (-1, *np.shape(patterns)[-2:])).astype("f4")
        file["encoder"] = np.reshape(positions, (-1, 2)) * 1e-10
        file["dxd"], file["zo"], file["wavelength"] = 5e-5, 0.1, [[2.5e-12]]
    return path
