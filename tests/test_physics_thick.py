"""A crystal of 10 nm with a dopant, straight and tilted: what several slices see, and twins that must fail without them.

After Chen et al., Science 372 (2021) 826, and Sha, Cui & Yu, Sci. Adv. 8 (2022) eabn2275, in miniature.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from physics import THICK, solve
from scipy import optimize

from ptycho.constraint import SliceSmoothing
from ptycho.result import Result
from ptycho.simulation import Simulated, simulate
from ptycho.solvers import Gradient, Updates
from ptycho.solvers.base import default_constraints
from ptycho.specimen import STRONTIUM_TITANATE_A, leaning, strontium_titanate, substitute

SLICES = {"slices": 10, "slice_thickness_A": 10.0}


def crystal() -> np.ndarray:
    """SrTiO3 with a titanium column in the centre."""
    return strontium_titanate(60.0, 100.0) + np.array([0, 0, STRONTIUM_TITANATE_A / 2, STRONTIUM_TITANATE_A / 2])


@pytest.fixture(scope="module")
def straight() -> Simulated:
    return simulate(THICK, atoms=substitute(crystal(), (8.25 * STRONTIUM_TITANATE_A, STRONTIUM_TITANATE_A / 2, STRONTIUM_TITANATE_A / 2), 74))


@pytest.fixture(scope="module")
def sliced(straight: Simulated) -> Result:
    """By the stages of a recipe that names none."""
    return solve(straight, None, **SLICES)


def test_ten_slices_see_ten_nanometres(straight: Simulated, sliced: Result) -> None:
    found = straight.compare(sliced)
    assert found.correlation >= 0.97
    assert found.slope == pytest.approx(1, abs=0.1)
    assert found.resolution_A < 0.6


def test_a_dopant_is_found_in_its_depth(straight: Simulated, sliced: Result) -> None:
    """Tungsten 32 Å deep, against the strontium of two other columns: depth to 1 nm, no wider than 4 nm.

    (Propagated to 2/3 of the highest frequency alone, it came out in the last slice.)
    """
    half = STRONTIUM_TITANATE_A / 2
    depth, width = depth_of(difference(straight, sliced, half))
    assert depth == pytest.approx(8.25 * STRONTIUM_TITANATE_A, abs=10)
    assert width < 40


def difference(simulated: Simulated, result: Result, half_A: float) -> np.ndarray:
    """By how much the mean phase within 0.3 Å of the column at (+, +) is above that of its neighbours, (slices,)."""
    y, x = np.indices(result.phase.shape[-2:])
    centre = (result.positions_A.min(0) + result.positions_A.max(0)) / 2

    def column(at: tuple[float, float]) -> np.ndarray:
        there = (centre + np.multiply(at, half_A)) / result.pixel_A + simulated.compare(result).shift_px
        return result.phase[:, np.hypot(y - there[0], x - there[1]) * result.pixel_A <= 0.3].mean(1)

    return column((1, 1)) - (column((1, -1)) + column((-1, 1))) / 2


def depth_of(profile: np.ndarray) -> tuple[float, float]:
    """Depth and full width at half maximum in Å of a Gaussian on a constant, over slices of 10 Å."""
    middle = 10.0 * np.arange(len(profile)) + 5.0

    def misfit(p: np.ndarray) -> np.ndarray:
        return p[0] * np.exp(-((middle - p[1]) ** 2) / (2 * p[2] ** 2)) + p[3] - profile

    found = optimize.least_squares(misfit, [np.ptp(profile), middle[profile.argmax()], 10.0, profile.min()]).x
    return float(found[1]), 2.355 * float(abs(found[2]))


def test_one_slice_does_not(straight: Simulated, sliced: Result) -> None:
    single = straight.compare(solve(straight, Gradient(epochs=12, batch=8)))
    assert single.correlation < 0.8 < straight.compare(sliced).correlation


def test_a_tilt_is_found_from_zero(sliced: Result) -> None:
    """Atoms that move by (4, -3) mrad with depth; parameter and lean of the recovered slices together are the tilt.

    Smoothed in depth, or the slices lean by themselves. Twin: upright columns do not lean.
    """
    tilt = (4.0, -3.0)
    leant = simulate(THICK, atoms=leaning(crystal(), tilt))
    smooth = replace(default_constraints(False, 1e4), slice_smoothing=SliceSmoothing(sigma_A=8.0))
    refined = solve(leant, Gradient(epochs=30, batch=8, constraints=smooth, update=Updates(tilt=3)), **SLICES)
    np.testing.assert_allclose(refined.tilt_mrad[0] + lean_mrad(refined), tilt, atol=1.5)
    np.testing.assert_allclose(lean_mrad(sliced), 0, atol=0.5)


def lean_mrad(result: Result) -> np.ndarray:
    """(y, x) by which the slices themselves move with depth: to first order a moved slice is a (mean - slope times way) + b."""
    rows, columns = result.scanned
    slices = result.phase[:, rows, columns].astype(float)
    mean = slices.mean(0)
    basis = np.stack([mean.ravel(), np.ones(mean.size), *(-slope.ravel() for slope in np.gradient(mean))], 1)
    a, _, y, x = np.linalg.lstsq(basis, slices.reshape(len(slices), -1).T, rcond=None)[0]
    depth = np.cumsum(result.slice_thickness_A) - result.slice_thickness_A[0]
    return np.polyfit(depth, np.stack([y / a, x / a], 1) * result.pixel_A, 1)[0] * 1e3
