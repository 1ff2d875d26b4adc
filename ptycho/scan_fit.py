"""The coarse repair of a scan before it is reconstructed: wrong step, rotation, shear or drift, and a wrong defocus with them.

A long reconstruction settles on the scan that it was given. A few passes over a part of the field hardly wider than the probe do not: the
object is new each time and follows, so that the map of the scan and the defocus move fast. Some rounds of this, each from an empty object
on the scan that the last one found, come from errors of 5 % or 3 degrees to within a few tenths of a percent; what is left is for
``update.affine`` in the reconstruction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from ptycho.aberrations import Aberration, Aberrations, corrected
from ptycho.affine import Affine, affine_between
from ptycho.data import Dataset4D
from ptycho.geometry import Geometry
from ptycho.patterns import Patterns
from ptycho.solvers import Gradient, Updates
from ptycho.start import ModelOptions, start

#: As many patterns from the middle of the field are looked at.
_PATTERNS = 576
#: Settled when a round changes no length by more than this share.
_SETTLED = 1e-3


@dataclass(frozen=True)
class ScanFit:
    """What the patterns say of the scan: ``affine`` takes the nominal positions to where they are, ``geometry`` has it and the new defocus.

    ``defocus_A`` is positive for underfocus; ``rounds`` were needed, ``settled`` tells whether the last one changed next to nothing.
    """

    affine: Affine
    geometry: Geometry
    defocus_A: float
    rounds: int
    settled: bool

    def __str__(self) -> str:
        return f"{self.affine}, defocus {self.defocus_A:.0f} Å, after {self.rounds} rounds" + ("" if self.settled else " (not settled)")


def fit_scan(data: Dataset4D, options: ModelOptions | None = None, rounds: int = 6, epochs: int = 3, workers: int = 1) -> ScanFit:
    """Fit the affine map of the scan and the defocus by short reconstructions of the middle of the field, in one slice.

    ``rounds`` at most, of ``epochs`` passes each. Raises what :func:`ptycho.start.start` raises.
    """
    whole = data.geometry
    part = middle(data, _PATTERNS)
    patterns = Patterns(part, torch.device("cpu"))
    electrons, nominal = part.survey().mean_electrons, part.geometry.positions_A
    options = replace(options or ModelOptions(), slices=1, slice_thickness_A=10.0)
    # The first pass is for the object alone: where there is none yet, the scan would shrink. After it the object has to stay quick.
    solver = Gradient(epochs=epochs, batch=16, loss="poisson", memory=(0.1, 0.1), update=Updates(probe=0, affine=2, aberrations=2))
    matrix, aberrations, settled, done = np.eye(2), whole.aberrations, False, 0
    while done < rounds and not settled:
        done += 1
        geometry = replace(part.geometry, positions_A=nominal @ matrix.T, aberrations=aberrations)
        model = start(geometry, options, electrons, part.mask)
        for _ in solver.run(model, patterns, workers):
            pass
        found = model.positions.value_px.detach().double().numpy() * model.pixel_A
        change = affine_between(geometry.positions_A, found).matrix
        matrix = change @ matrix
        # Defocus and twofold astigmatism; higher orders take longer than this.
        correction = [c if term.n == 1 else 0.0 for term, c in zip(_parts(model.probe.terms), model.probe.correction_A.tolist(), strict=True)]
        aberrations = corrected(aberrations, model.probe.terms, correction)
        depth_A = 2 * whole.wavelength_A / (math.pi * (whole.semiangle_mrad * 1e-3) ** 2)
        settled = bool(np.abs(change - np.eye(2)).max() < _SETTLED and abs(correction[0]) < depth_A)
    repaired = replace(whole, positions_A=whole.positions_A @ matrix.T, aberrations=aberrations)
    return ScanFit(affine_between(whole.positions_A, repaired.positions_A), repaired, repaired.defocus_A, done, settled)


def middle(data: Dataset4D, count: int) -> Dataset4D:
    """The data of the ``count`` positions nearest to the middle of the field, in the norm of a square."""
    positions: NDArray[np.float64] = data.geometry.positions_A
    distance = np.abs(positions - (positions.min(0) + positions.max(0)) / 2).max(1)
    far = np.argsort(distance, kind="stable")[count:]
    return data.without(far) if len(far) else data


def _parts(terms: Aberrations) -> list[Aberration]:
    """The term of each Cartesian coefficient."""
    return [term for term in terms for _ in range(2 if term.m else 1)]
