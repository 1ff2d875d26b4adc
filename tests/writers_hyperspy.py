"""A minimal .hspy file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py


def write_hyperspy(
    path: Path, patterns, steps=(0.2, 0.3, 0.05, 0.05), units=("nm", "nm", "$A^{-1}$", "$A^{-1}$"), instrument: Mapping[str, Any] | None = None
):
    """Patterns (slow, fast, ky, kx) as HyperSpy 2 stores them; ``instrument`` are the TEM's attributes."""
    with h5py.File(path, "w") as file:
        file.attrs.update(file_format="HyperSpy", file_format_version="3.3")
        group = file.create_group("Experiments/a scan")
        group["data"] = patterns
        first = 4 - patterns.ndim
        for index, (size, step, unit) in enumerate(zip(patterns.shape, steps[first:], units[first:], strict=True)):
            axis = group.create_group(f"axis-{index}")
            axis.attrs.update(
                _type="UniformDataAxis", name="", scale=step, offset=0.0, size=size, units=unit, navigate=index + first < 2, is_binned=False
            )
        group.create_group("metadata/Acquisition_instrument/TEM").attrs.update(instrument or {})
        group.create_group("metadata/Signal").attrs["signal_type"] = "electron_diffraction"
        group.create_group("original_metadata")
    return path
