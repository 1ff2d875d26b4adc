"""Small simulated experiments that the tests of physics share, and the reconstructions of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

import ptycho
from ptycho.metrics import Agreement
from ptycho.result import Result
from ptycho.simulation import Simulated, Simulation
from ptycho.solvers import Gradient, Updates

#: A WS2 monolayer after Jiang et al., Nature 559 (2018) 343, with a tenth of the sulphur missing: in 48 pixels out to 2.6 times the aperture.
THIN = Simulation(
    scan_shape=(16, 16), step_A=0.6, defocus_A=80.0, pattern_px=48, pixel_invA=0.065, dose_e_per_A2=1e5, vacancy_fraction=0.1,
    read_noise_electrons=0.0,
)  # fmt: skip
#: SrTiO3 of 10 nm after Chen et al., Science 372 (2021) 826, overfocused.
THICK = Simulation(
    specimen="SrTiO3", thickness_A=100.0, scan_shape=(14, 14), step_A=0.6, voltage_kV=300.0, semiangle_mrad=21.4, defocus_A=-120.0, pattern_px=64,
    pixel_invA=0.065, dose_e_per_A2=1e6, slice_thickness_A=3.905, read_noise_electrons=0.0,
)  # fmt: skip


def noise_free(simulation: Simulation) -> Simulation:
    """The same experiment with so many electrons that their noise is not seen."""
    return replace(simulation, dose_e_per_A2=1e9)


def solve(simulated: Simulated, stage: Any, reading: dict[str, Any] | None = None, **model: Any) -> Result:
    """Reconstruct it on the CPU with one stage; ``reading`` changes what the data set says of itself, ``model`` the recipe's [model]."""
    return ptycho.reconstruct(simulated.dataset(**(reading or {})), solve=stage, device="cpu", **model)


def blind(epochs: int = 12, **settings: Any) -> Gradient:
    """Object and probe."""
    return Gradient(**{"epochs": epochs, "batch": 16, "loss": "poisson", **settings})


def known_probe(epochs: int = 12, **settings: Any) -> Gradient:
    """The object alone: the probe is that of the nominal optics."""
    return blind(epochs, **{"update": Updates(probe=0), **settings})


def relative_rms(found: Agreement) -> float:
    """rms of the difference in units of the truth's, from correlation c and slope s: sqrt(s^2 / c^2 + 1 - 2 s)."""
    return float(np.sqrt(max(found.slope**2 / found.correlation**2 + 1 - 2 * found.slope, 0.0)))
