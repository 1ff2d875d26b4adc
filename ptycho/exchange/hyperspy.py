"""HyperSpy's ``.hspy``: one signal for phase, amplitude and probe each, with axes in nm."""

from __future__ import annotations

from typing import Any

import numpy as np

from ptycho.exchange.hdf5 import Data, tree_bytes
from ptycho.result import Result


def encode_hspy(result: Result) -> bytes:
    """Signals "phase" (z, y, x), "amplitude" and "probe" (mode, y, x), the first axis to navigate along."""
    plane = [("y", result.pixel_A / 10, "nm"), ("x", result.pixel_A / 10, "nm")]
    depth = ("z", float(result.slice_thickness_A.mean()) / 10, "nm")
    signals = {
        "phase": _signal(result, "phase", result.phase, [depth, *plane], "rad"),
        "amplitude": _signal(result, "amplitude", result.amplitude, [depth, *plane], ""),
        "probe": _signal(result, "probe", result.probe, [("mode", 1.0, ""), *plane], "sqrt(electrons)"),
    }
    return tree_bytes({"@file_format": "HyperSpy", "@file_format_version": "3.3", "Experiments": signals})


def _signal(result: Result, title: str, values: Any, axes: list[tuple[str, float, str]], quantity: str) -> dict[str, Any]:
    groups = {}
    for index, ((name, scale, unit), size) in enumerate(zip(axes, np.shape(values), strict=True)):
        axis = {"_type": "UniformDataAxis", "name": name, "scale": scale, "offset": 0.0, "size": size, "units": unit}
        axis |= {"navigate": index == 0, "is_binned": False}
        groups[f"axis-{index}"] = {f"@{key}": value for key, value in axis.items()}
    microscope = {"@beam_energy": result.voltage_kV, "@convergence_angle": result.semiangle_mrad}
    metadata = {
        "General": {"@title": f"ptychography: {title}"},
        "Signal": {"@signal_type": "", "@quantity": quantity},
        "Acquisition_instrument": {"TEM": microscope},
        "_HyperSpy": {},
    }
    rest: dict[str, Any] = {"metadata": metadata, "original_metadata": {}, "learning_results": {}}
    return {"@package": "ptycho", "@package_version": "", "data": Data(values), **groups, **rest}
