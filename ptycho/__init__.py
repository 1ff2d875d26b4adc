"""4D-STEM electron ptychography: from a pixelated-detector file to a phase image that can be trusted.

Conventions, everywhere in the package:

* Lengths in Å, spatial frequencies in Å⁻¹ (cycles, no 2 pi), angles in rad, energies in eV; where a person types a number, its
  unit is in the name (``defocus_A``, ``semiangle_mrad``).
* Arrays are (row, column) = (y, x). Patterns (N, ky, kx) have zero frequency in the centre in files and data sets, in the corner inside
  the model. Objects are (states, slices, y, x), probes (modes, y, x), slice 0 is where the beam enters.
* Waves are exp(+2 pi i k.r); the probe's phase factor is exp(-i chi) with Krivanek's coefficients; **positive defocus is underfocus**,
  ``defocus_A = -C10``. Propagation multiplies by exp(-i pi lambda dz k^2).
* Counts are electrons from end to end: the sum of |probe|^2 is the mean number of electrons per pattern, transforms are unitary.
* Positive phase is positive projected potential.

Importing the package is cheap: torch comes with the first function that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: Public name -> module it lives in, imported when it is first used (PEP 562).
_PUBLIC = {
    "read": "ptycho.io",
    "write_empad": "ptycho.io",
    "write_hdf5": "ptycho.io",
    "export": "ptycho.exchange",
    "import_run": "ptycho.exchange",
    "load": "ptycho.io.result_file",
    "save": "ptycho.io.result_file",
    "reconstruct": "ptycho.pipeline",
    "calibrate": "ptycho.calibration",
    "LiveFigure": "ptycho.live_figure",
    "tune": "ptycho.tuning",
    "parallax": "ptycho.tilt_corrected",
    "Recipe": "ptycho.recipe",
    "Result": "ptycho.result",
    "Dataset4D": "ptycho.data",
    "Geometry": "ptycho.geometry",
    "Gradient": "ptycho.solvers",
    "EPIE": "ptycho.solvers",
    "MixedState": "ptycho.solvers",
    "Simulation": "ptycho.simulation_settings",
    "simulate": "ptycho.simulation",
    "ssb": "ptycho.direct",
    "obf": "ptycho.direct",
    "wdd": "ptycho.direct",
    "PtychoError": "ptycho.errors",
    "virtual_image": "ptycho.virtual",
    "virtual_images": "ptycho.virtual",
    "annulus": "ptycho.virtual",
    "segments": "ptycho.virtual",
    "com": "ptycho.centre_of_mass",
    "idpc": "ptycho.centre_of_mass",
    "dcom": "ptycho.centre_of_mass",
}
_RENAMED = {"load": "load_result", "save": "save_result"}

__all__ = [
    "EPIE", "Dataset4D", "Geometry", "Gradient", "LiveFigure", "MixedState", "PtychoError", "Recipe", "Result", "Simulation",
    "__version__", "annulus", "calibrate", "com", "dcom", "export", "idpc", "import_run", "load", "obf", "parallax", "read", "reconstruct", "save",
    "segments", "simulate", "ssb", "tune", "virtual_image", "virtual_images", "wdd", "write_empad", "write_hdf5",
]  # fmt: skip

if TYPE_CHECKING:
    from ptycho.calibration import calibrate as calibrate
    from ptycho.centre_of_mass import com as com
    from ptycho.centre_of_mass import dcom as dcom
    from ptycho.centre_of_mass import idpc as idpc
    from ptycho.data import Dataset4D as Dataset4D
    from ptycho.direct import obf as obf
    from ptycho.direct import ssb as ssb
    from ptycho.direct import wdd as wdd
    from ptycho.errors import PtychoError as PtychoError
    from ptycho.exchange import export as export
    from ptycho.exchange import import_run as import_run
    from ptycho.geometry import Geometry as Geometry
    from ptycho.io import read as read
    from ptycho.io import write_empad as write_empad
    from ptycho.io import write_hdf5 as write_hdf5
    from ptycho.io.result_file import load_result as load
    from ptycho.io.result_file import save_result as save
    from ptycho.live_figure import LiveFigure as LiveFigure
    from ptycho.pipeline import reconstruct as reconstruct
    from ptycho.recipe import Recipe as Recipe
    from ptycho.result import Result as Result
    from ptycho.simulation import simulate as simulate
    from ptycho.simulation_settings import Simulation as Simulation
    from ptycho.solvers import EPIE as EPIE
    from ptycho.solvers import Gradient as Gradient
    from ptycho.solvers import MixedState as MixedState
    from ptycho.tilt_corrected import parallax as parallax
    from ptycho.tuning import tune as tune
    from ptycho.virtual import annulus as annulus
    from ptycho.virtual import segments as segments
    from ptycho.virtual import virtual_image as virtual_image
    from ptycho.virtual import virtual_images as virtual_images


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'ptycho' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_PUBLIC[name]), _RENAMED.get(name, name))


def __dir__() -> list[str]:
    return __all__
