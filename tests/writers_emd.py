"""Minimal EMD files: each function writes patterns (slow, fast, ky, kx) as one program does, and returns the path."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np


def write_emd1(path: Path, patterns, step=(2.0, 3.0), scan_unit="A", pixel=(0.1, 0.1), unit="A^-1", calibration: Mapping[str, Any] | None = None):
    """EMD 1.0 as py4DSTEM 0.14 writes it."""
    with h5py.File(path, "w") as file:
        file.attrs.update(emd_group_type="file", version_major=1, version_minor=0, authoring_program="py4DSTEM", UUID="0")
        root = file.create_group("datacube_root")
        root.attrs.update(emd_group_type="root", python_class="Root")
        group = root.create_group("datacube")
        group.attrs.update(emd_group_type="array", python_class="DataCube")
        group["data"] = patterns
        group["data"].attrs["units"] = "pixel intensity"
        axes = list(zip(("Rx", "Ry", "Qx", "Qy"), (*step, *pixel), (scan_unit, scan_unit, unit, unit), strict=True))
        for index, (name, size, axis_unit) in enumerate(axes[4 - patterns.ndim :]):
            group[f"dim{index}"] = [0.0, size]
            group[f"dim{index}"].attrs.update(name=name, units=axis_unit)
        bundle = root.create_group("metadatabundle")
        bundle.attrs["emd_group_type"] = "metadatabundle"
        metadata = bundle.create_group("calibration")
        metadata.attrs.update(emd_group_type="metadata", python_class="Calibration")
        for key, value in (calibration or {}).items():
            metadata[key] = value
    return path


def write_py4dstem(path: Path, patterns, microscope: Mapping[str, Any] | None = None, calibration: Mapping[str, Any] | None = None):
    """py4DSTEM 0.5 to 0.11: dims as long as the axes, without units; metadata are attributes."""
    with h5py.File(path, "w") as file:
        top = file.create_group("4DSTEM_experiment")
        top.attrs.update(emd_group_type=2, version_major=0, version_minor=9)
        group = top.create_group("data/datacubes/datacube_0")
        group.attrs["emd_group_type"] = 1
        group["data"] = patterns
        for index, length in enumerate(patterns.shape):
            group[f"dim{index + 1}"] = np.arange(length)
            group[f"dim{index + 1}"].attrs.update(name=f"R{index}", units="[pix]")
        for name, values in (("microscope", microscope), ("calibration", calibration)):
            top.create_group(f"metadata/metadata_0/{name}").attrs.update(values or {})
    return path


def write_prismatic(path: Path, patterns, n_depths=1):
    """Prismatic 2: one datacube for each depth, dims as long as the axes."""
    with h5py.File(path, "w") as file:
        for depth in range(n_depths):
            group = file.create_group(f"4DSTEM_simulation/data/datacubes/CBED_array_depth{depth:04}")
            group.attrs["emd_group_type"] = np.int32(1)
            group["datacube"] = patterns.astype("f4")
            steps = [0.25, 0.5, 0.05, 0.05]
            for index, (length, step) in enumerate(zip(patterns.shape, steps, strict=True)):
                group[f"dim{index + 1}"] = np.arange(length, dtype="f4") * np.float32(step)
                unit = "[Å]" if index < 2 else "[Å^-1]"
                group[f"dim{index + 1}"].attrs.update(name=np.bytes_("R_x"), units=np.bytes_(unit.encode().ljust(256, b"\0")))
        parameters = file.create_group("4DSTEM_simulation/metadata/metadata_0/original/simulation_parameters")
        parameters.attrs.update(E=np.float32(80), sa=np.float32(25), df=np.float32(-100))
    return path


def write_berkeley(path: Path, patterns, reverse=True):
    """EMD 0.2; HyperSpy writes it with the axes in reverse order."""
    axes = list(
        zip(patterns.shape, ("y", "x", "ky", "kx"), (0.2, 0.3, 0.5, 0.5), ("[n_m]", "[n_m]", "[1_ _/_ _n_m]", "[$_A_^_{_-_1_}_$]"), strict=True)
    )
    axes[-1] = (*axes[-1][:2], 0.05, axes[-1][3])
    with h5py.File(path, "w") as file:
        file.attrs.update(version_major=0, version_minor=2)
        group = file.create_group("signals/a scan")
        group.attrs["emd_group_type"] = 1
        group["data"] = patterns.transpose() if reverse else patterns
        for index, (_, name, step, unit) in enumerate(axes[::-1] if reverse else axes):
            group[f"dim{index + 1}"] = [0.0, step]
            group[f"dim{index + 1}"].attrs.update(name=name, units=unit)
        file.create_group("microscope").attrs["accelerating_voltage"] = 200e3
    return path


VELOX = {
    "Optics": {"AccelerationVoltage": "200000", "BeamConvergence": "0.025", "CameraLength": "0.285", "Defocus": "-5e-07"},
    "Scan": {"ScanRotation": "1.5707963267948966", "DwellTime": "1e-3"},
    "BinaryResult": {"PixelSize": {"width": "1e8", "height": "1e8"}, "PixelUnitX": "1/m", "PixelUnitY": "1/m"},
}


def write_velox(path: Path, patterns, metadata: Any = None):
    """Velox: frames last, one JSON text for each, and a HAADF image beside the stack."""
    frames = patterns.reshape(-1, *patterns.shape[-2:])
    with h5py.File(path, "w") as file:
        for name, images in (("2b", frames[:1]), ("1a", frames)):
            group = file.create_group(f"Data/Image/{name}")
            data = np.moveaxis(images, 0, -1)
            group.create_dataset("Data", data=data, chunks=(*data.shape[:2], 1))
            text = json.dumps(VELOX if metadata is None else metadata).encode()
            columns = np.zeros((2000, len(images)), "u1")
            columns[: len(text)] = np.frombuffer(text, "u1")[:, None]
            group["Metadata"] = columns
        file["Version"] = '{"format": "Velox"}'
    return path
