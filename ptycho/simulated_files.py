"""A simulated data set as files: what a detector would have written, the truth, and the recipe that reconstructs it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ptycho.errors import OutputError, RecipeError
from ptycho.io import write_empad, write_hdf5
from ptycho.io.empad import typical_adu_per_electron
from ptycho.simulation import Simulated
from ptycho.simulation_settings import Simulation

#: A slice of the reconstruction that the recipe proposes; much thinner ones cannot be told apart at usual angles and doses.
_RECONSTRUCTION_SLICE_A = 20.0
#: Incoherent modes that it proposes for a source that is not a point.
_SOURCE_MODES = 4


def check_format(simulation: Simulation, format: str) -> None:
    """Raises RecipeError for an unknown format, and for patterns that an EMPAD cannot have."""
    if format not in ("empad", "hdf5"):
        raise RecipeError(f"format = {format!r}: unknown; known are empad, hdf5")
    if format == "empad" and simulation.pattern_px != 128:
        raise RecipeError(f'pattern_px = {simulation.pattern_px}: an EMPAD has 128 x 128 pixels; use format = "hdf5" or pattern_px = 128')


def write_simulation(simulated: Simulated, directory: str | os.PathLike[str], format: str = "empad") -> Path:
    """Write the patterns, ``truth.npz`` and a ``recipe.toml`` that reconstructs them.

    ``truth.npz`` holds phase (1, y, x) in rad, sampling_A, positions_A (N, 2), where the probe really was, and descan_px (N, 2), where the
    pattern was on the detector; the recipe knows the raster and the detector's centre.

    ``format`` "empad": ``scan_x{fast}_y{slow}.raw`` with its ``.xml``, 148 ADU per electron at 80 kV; "hdf5": ``data.h5`` in electrons. Returns
    the path of the recipe. Raises RecipeError for an unknown format or patterns that an EMPAD cannot have, OutputError when the
    files cannot be written.
    """
    s = simulated.simulation
    folder = Path(directory)
    check_format(s, format)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if format == "empad":
            path = write_empad(
                folder / f"scan_x{s.scan_shape[1]}_y{s.scan_shape[0]}.raw",
                simulated.patterns,
                adu_per_electron=typical_adu_per_electron(s.voltage_kV),
                voltage_kV=s.voltage_kV,
                step_A=s.step_A,
                rotation_deg=s.rotation_deg,
            )
        else:
            names = ("voltage_kV", "semiangle_mrad", "defocus_A", "step_A", "rotation_deg", "pixel_invA")
            path = write_hdf5(folder / "data.h5", simulated.patterns, {name: getattr(s, name) for name in names})
        np.savez_compressed(
            folder / "truth.npz",
            phase=simulated.truth_phase[None],
            sampling_A=simulated.truth_pixel_A,
            positions_A=simulated.positions_A,
            descan_px=s.descan_px,
        )
        recipe = folder / "recipe.toml"
        recipe.write_text(_recipe(simulated, path.name, format), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror or error})") from None
    return recipe


def _recipe(simulated: Simulated, file_name: str, format: str) -> str:
    s = simulated.simulation
    slices = max(1, round(simulated.thickness_A / _RECONSTRUCTION_SLICE_A))
    slice_thickness = f"\nslice_thickness_A = {simulated.thickness_A / slices:g}" if slices > 1 else ""
    aberrations = ", ".join(f"{name} = {value:g}" for name, value in s.aberrations.items())
    aberrations = f"\naberrations = {{ {aberrations} }}" if aberrations else ""
    blur = f"\ndetector_blur_px = {s.detector_blur_px:g}" if s.detector_blur_px else ""
    stored = {
        "empad": f"flip_rows = true  # the EMPAD stores its rows upside down\nadu_per_electron = {typical_adu_per_electron(s.voltage_kV):.8g}",
        "hdf5": "flip_rows = false\nadu_per_electron = 1  # already electrons",
    }[format]
    return f"""\
# Simulated 4D-STEM: {Path(s.specimen).name}, {s.dose_e_per_A2:g} electrons per Å². Run it with: ptycho reconstruct recipe.toml
# truth.npz beside it holds the phase that should come out.

# The measured patterns, and what turns the stored numbers into electrons. The path is relative to this file.
[data]
path = "{file_name}"
{stored}

# The illumination. Positive defocus is underfocus: the beam comes to its focus behind the specimen.
[microscope]
voltage_kV = {s.voltage_kV:g}
semiangle_mrad = {s.semiangle_mrad:g}
defocus_A = {s.defocus_A:g}{aberrations}

# Where the probe stood: a raster, slow axis (y) first; the rotation is that of the scan relative to the detector.
[scan]
shape = [{s.scan_shape[0]}, {s.scan_shape[1]}]
step_A = {s.step_A:g}
rotation_deg = {s.rotation_deg:g}

# The size of a detector pixel in reciprocal space. Its inverse, {1 / s.pixel_invA:.3g} Å, is the window that must hold the probe.
[detector]
pixel_invA = {s.pixel_invA:.8g}

# What is sought: incoherent modes of the probe, and the specimen as slices along the beam.
[model]
probe_modes = {_SOURCE_MODES if s.source_A else 1}
slices = {slices}{slice_thickness}{blur}
seed = {s.seed}
"""
