"""What is known of object and probe beforehand, imposed between epochs.

Each constraint is a frozen record of numbers with one method; the records are also the recipe's ``constraints`` entries.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import torch

from ptycho.constraint.base import Constraint
from ptycho.constraint.gauge import CentreProbe, ObjectScale, PhaseRamp
from ptycho.constraint.grid import GridFilter
from ptycho.constraint.object import Absorption, Amplitude, LowPass, PositivePhase, PurePhase, normalise
from ptycho.constraint.prior import Sparsity, Tikhonov, TotalVariation
from ptycho.constraint.probe import OrthogonalModes, ProbeAperture, ProbePower, ProbeSupport
from ptycho.constraint.slices import SliceCoupling, SliceSmoothing
from ptycho.errors import RecipeError
from ptycho.model import Ptychography

__all__ = [
    "Absorption", "Amplitude", "CentreProbe", "Constraint", "Constraints", "GridFilter", "LowPass", "ObjectScale", "OrthogonalModes", "PhaseRamp",
    "PositivePhase", "ProbeAperture", "ProbePower", "ProbeSupport", "PurePhase", "SliceCoupling", "SliceSmoothing", "Sparsity", "Tikhonov",
    "TotalVariation", "normalise",
]  # fmt: skip


@dataclass(frozen=True)
class Constraints:
    """Which constraints act; None leaves one out. They act in this order, and each has ``start``, ``stop`` and ``every`` (epochs).

    ================= ================================================ ============================================= =======================
    entry             imposes                                          numbers (default)                             acts on
    ================= ================================================ ============================================= =======================
    pure_phase        |O| = 1                                                                                        object
    total_variation   flat regions, sharp edges                        xy_rad_per_A (0.1), z_rad_per_A2 (0: off)     object, against dose
    tikhonov          slopes of this size, smooth                      xy_rad_per_A (0.1), z_rad_per_A2 (0: off)     object, against dose
    sparsity          most of the phase is that of vacuum              mean_phase_rad (0.05)                         phase, against dose
    low_pass          no finer detail                                  cutoff_invA, edge_invA (0.1)                  object
    grid_filter       no grid at the raster's frequencies              contrast (10)                                 object
    amplitude         min <= |O| <= max                                min (0), max (1.1)                            object
    slice_smoothing   Gaussian along the beam                          sigma_A (10)                                  object, slices
    slice_coupling    weight in kz / kr, the missing cone              strength (1)                                  object, slices
    positive_phase    phase >= 0                                       mean_phase_rad (0.2, 0: no prior)             phase, against dose
    absorption        |O| = exp(-ratio phase)                          ratio (0.05)                                  object
    object_scale      |O| = 1 rms, patterns stay                                                                     object and probe
    phase_ramp        no slope of the phase, patterns stay                                                           object and probe
    centre_probe      centre of mass in the window's, patterns stay                                                  probe and positions
    probe_support     dark beyond a radius                             radius_A, edge_A (1)                          probe
    probe_aperture    dark beyond the aperture, evenly lit inside      semiangle_mrad, edge_mrad (0), flat (0)       probe
    probe_power       a power                                          electrons (0: as at the start)                probe
    orthogonal_modes  modes orthogonal and sorted                                                                    probe
    ================= ================================================ ============================================= =======================

    Raises RecipeError for two that contradict each other.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid", "allow_inf_nan": False}  # for recipe.py

    pure_phase: PurePhase | None = None
    total_variation: TotalVariation | None = None
    tikhonov: Tikhonov | None = None
    sparsity: Sparsity | None = None
    low_pass: LowPass | None = None
    grid_filter: GridFilter | None = None
    amplitude: Amplitude | None = None
    slice_smoothing: SliceSmoothing | None = None
    slice_coupling: SliceCoupling | None = None
    positive_phase: PositivePhase | None = None
    absorption: Absorption | None = None
    object_scale: ObjectScale | None = None
    phase_ramp: PhaseRamp | None = None
    centre_probe: CentreProbe | None = None
    probe_support: ProbeSupport | None = None
    probe_aperture: ProbeAperture | None = None
    probe_power: ProbePower | None = None
    orthogonal_modes: OrthogonalModes | None = None

    def __post_init__(self) -> None:
        if self.pure_phase is not None and self.absorption is not None:
            raise RecipeError("pure_phase says that nothing is absorbed, absorption how much: leave one of them out")
        if self.object_scale is not None and self.probe_power is not None:
            raise RecipeError("object_scale and probe_power both decide about the probe's power: leave one of them out")

    def apply(self, model: Ptychography, epoch: int, held: frozenset[str] = frozenset()) -> None:
        """Impose all that are due after this epoch; the parts ``held`` (object, probe) are known, or not yet learned, and stay."""
        with torch.no_grad():
            for entry in fields(self):
                constraint: Constraint | None = getattr(self, entry.name)
                if constraint is not None and constraint.due(epoch) and not constraint.acts_on & held:
                    constraint.apply(model)
