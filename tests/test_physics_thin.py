"""A thin specimen: what an expert would ask of its phase, and twins with the wrong model, which must fail.

The thresholds are for continuous integration; benchmarks/publication.py asks more of larger experiments.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from physics import THIN, blind, known_probe, noise_free, relative_rms, solve

from ptycho.constraint import Constraints, OrthogonalModes, PositivePhase, PurePhase
from ptycho.geometry import wavelength_A
from ptycho.simulation import Simulated, simulate

#: Resolution in Å that the grid has.
GRID_A = 2 / (THIN.pattern_px * THIN.pixel_invA)
K_INVA = np.hypot(*(np.indices((THIN.pattern_px,) * 2) - THIN.pattern_px // 2)) * THIN.pixel_invA
APERTURE_INVA = THIN.semiangle_mrad * 1e-3 / wavelength_A(THIN.voltage_kV)


@pytest.fixture(scope="module")
def perfect() -> Simulated:
    return simulate(noise_free(THIN))


@pytest.fixture(scope="module")
def counted() -> Simulated:
    return simulate(THIN)


@pytest.fixture(scope="module")
def whole_corr(counted: Simulated) -> float:
    return counted.compare(solve(counted, blind())).correlation


def test_the_prior_goes_by_the_dose() -> None:
    """400 e/Å2 in focus: a fixed prior, good at 1e4 e/Å2, leaves hardly anything (twin); that of the default keeps the lattice."""
    simulated = simulate(replace(THIN, defocus_A=0.0, step_A=0.5, dose_e_per_A2=400.0))
    fixed = Constraints(pure_phase=PurePhase(), positive_phase=PositivePhase(mean_phase_rad=0.2), orthogonal_modes=OrthogonalModes())
    by_dose, twin = (simulated.compare(solve(simulated, known_probe(10, constraints=c)), 0.8) for c in (None, fixed))
    assert by_dose.correlation > 0.7
    assert by_dose.correlation > twin.correlation + 0.02
    assert by_dose.slope > 1.4 * twin.slope


def test_without_noise_the_phase_comes_back_to_the_grid_limit(perfect: Simulated) -> None:
    found = perfect.compare(solve(perfect, known_probe(25, loss="amplitude")))
    assert found.correlation >= 0.995
    assert found.slope == pytest.approx(1, abs=0.1)
    assert relative_rms(found) <= 0.15
    assert found.resolution_A == pytest.approx(GRID_A, rel=0.02)


def test_the_bright_field_alone_does_not(perfect: Simulated) -> None:
    """Twin: the dark field holds the fine detail and much of the phase."""
    found = perfect.compare(solve(perfect, known_probe(15, loss="amplitude"), {"mask": K_INVA < APERTURE_INVA}))
    assert found.correlation < 0.97
    assert relative_rms(found) > 0.2


def test_a_blind_probe_and_absolute_phase(counted: Simulated) -> None:
    """Started with a defocus wrong by 5 %, 1e5 electrons per Å^2."""
    found = counted.compare(solve(counted, blind(), {"defocus_A": 1.05 * THIN.defocus_A}))
    assert found.correlation >= 0.95
    assert found.slope == pytest.approx(1, abs=0.1)
    assert relative_rms(found) <= 0.15


def test_focus_on_the_wrong_side_fails(counted: Simulated) -> None:
    """Twin: overfocus taken for underfocus, and kept."""
    assert counted.compare(solve(counted, known_probe(10), {"defocus_A": -THIN.defocus_A})).correlation < 0.5


def test_noise_falls_with_the_dose_and_stays_near_the_shot_noise_law() -> None:
    """sigma(d) = sqrt(pi / (4 D DQE)) / d with a detective quantum efficiency of 0.2; -1/2 is the slope of log rms over log dose."""
    d, rms, doses = 1.2, [], np.array([2e3, 1e4, 5e4])
    for dose in doses:
        simulated = simulate(replace(THIN, dose_e_per_A2=dose))
        rms.append(simulated.compare(solve(simulated, known_probe()), cutoff_invA=1 / d).rms_rad)
        assert rms[-1] <= 3 * np.sqrt(np.pi / (4 * dose * 0.2)) / d
    assert -0.6 <= np.polyfit(np.log(doses), np.log(rms), 1)[0] <= -0.3


@pytest.mark.parametrize(("damage", "most"), [("hollow", 0.03), ("dead cross", 0.01)])
def test_pixels_that_do_not_count_are_not_missed(counted: Simulated, whole_corr: float, damage: str, most: float) -> None:
    """The mask is in the likelihood; twin: taken for measured zeros they are worse."""
    good = K_INVA > 0.5 * APERTURE_INVA
    if damage == "dead cross":
        good = np.ones_like(good)
        good[23:26] = good[:, 30:33] = False
    damaged = replace(counted, patterns=counted.patterns * good)
    masked, zeros = (damaged.compare(solve(damaged, blind(), reading)) for reading in ({"mask": good}, {}))
    assert masked.correlation >= whole_corr - most
    assert masked.slope == pytest.approx(1, abs=0.1)
    assert zeros.rms_rad > 1.5 * masked.rms_rad


def test_hot_pixels_are_found(counted: Simulated, whole_corr: float) -> None:
    """A hundredth of the pixels adds four times the beam's electrons: none of them is believed, nor is the sum."""
    hot = np.random.default_rng(0).random(K_INVA.shape) < 0.01
    damaged = replace(counted, patterns=counted.patterns + np.float32(5e3) * hot)
    data = damaged.dataset()
    assert data.beam_electrons == pytest.approx(THIN.electrons_per_pattern, rel=0.05)
    found = damaged.compare(solve(damaged, blind(), {"mask": ~hot}))
    assert found.correlation >= whole_corr - 0.01
