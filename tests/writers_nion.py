"""Minimal Nion Swift files."""

from __future__ import annotations

import json
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np

INSTRUMENT = {
    "instrument": {"high_tension": 60000.0, "convergence_angle": 0.035, "defocus": -5e-9, "beam_current": 2e-11},
    "hardware_source": {"exposure": 0.002, "counts_per_electron": 35.0, "hardware_source_id": "camera"},
    "scan": {"rotation": 0.5, "fov_nm": 8.0},
}


def properties(n_axes=4, unit="rad", metadata: Any = INSTRUMENT) -> dict[str, Any]:
    """The JSON of a scan with steps of 0.2 and 0.3 nm and detector pixels of 0.5 mrad."""
    axes = [(0.2, "nm"), (0.3, "nm"), (5e-4, unit), (5e-4, unit)]
    return {
        "is_sequence": n_axes == 3, "collection_dimension_count": 2 if n_axes == 4 else 0, "datum_dimension_count": 2, "uuid": "0",
        "dimensional_calibrations": [{"offset": 0.0, "scale": scale, "units": units} for scale, units in axes[4 - n_axes :]],
        "metadata": metadata,
    }  # fmt: skip


def write_ndata(path: Path, patterns, said: dict[str, Any] | None = None, compression=zipfile.ZIP_STORED):
    """A zip of data.npy and metadata.json."""
    array = BytesIO()
    np.save(array, patterns)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("data.npy", array.getvalue())
        archive.writestr("metadata.json", json.dumps(properties(patterns.ndim) if said is None else said))
    return path


def write_nion_h5(path: Path, patterns, said: dict[str, Any] | None = None):
    """/data with its properties, as Swift stores large data."""
    with h5py.File(path, "w") as file:
        file["data"] = patterns
        file["data"].attrs["properties"] = json.dumps(properties(patterns.ndim) if said is None else said)
    return path


def write_nhdf(path: Path, *items):
    """/data/0, /data/1, ... as Swift exports them."""
    with h5py.File(path, "w") as file:
        file.create_group("index").attrs["1"] = "{}"
        for index, patterns in enumerate(items):
            file[f"data/{index}"] = patterns
            file[f"data/{index}"].attrs["properties"] = json.dumps(properties(patterns.ndim))
    return path
