"""Atoms that vibrate: Bragg beams fall as Debye and Waller say, what they lose is between them, and no electron is lost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ptycho.errors import RecipeError
from ptycho.simulation import Simulation, expected_patterns, forward_model, simulate, thermal_patterns
from ptycho.specimen import displaced, displacements_A, phase_slices, strontium_titanate

SMALL = Simulation(
    "SrTiO3", scan_shape=(2, 2), thickness_A=20.0, pattern_px=32, pixel_invA=0.08, defocus_A=60.0, voltage_kV=300.0, semiangle_mrad=15.0,
    read_noise_electrons=0.0,
)  # fmt: skip


def test_bragg_beams_follow_debye_and_waller() -> None:
    """A plane wave on one plane of carbon, 24 x 24 cells of 2 Å: intensities times exp(-4 pi² g² u²), diffuse ones between.

    Einstein's model without interference of atoms: N |f|² (1 - exp(-4 pi² g² u²)) on average (Warren, X-ray Diffraction, eq. 3.20).
    """
    cells, a, u, n = 24, 2.0, 0.15, 12
    size, pixel = cells * 8, a / 8
    place = (np.arange(cells) - cells // 2 + 0.5) * a
    y, x = np.meshgrid(place, place, indexing="ij")
    atoms = np.column_stack([np.full(cells**2, 6.0), np.full(cells**2, 0.5), y.ravel(), x.ravel()])

    def intensity(specimen: np.ndarray) -> np.ndarray:
        phase = phase_slices(specimen, (size, size), pixel, 300.0, [0, 1])[0].astype(float)
        return np.abs(np.fft.fft2(np.exp(1j * phase))) ** 2

    rms = displacements_A(atoms, {"C": u})
    still = intensity(atoms)
    moving = sum(intensity(displaced(atoms, rms, np.random.default_rng([3, c]))) for c in range(n)) / n
    h = np.fft.fftfreq(size, 1 / size)
    g = np.hypot(h[:, None], h) / (cells * a)
    factor = np.exp(-4 * np.pi**2 * g**2 * u**2)
    bragg = (h[:, None] % cells == 0) & (h % cells == 0)
    assert still[~bragg].max() < 1e-6 * still[0, 0]
    for order in (1, 2):
        beams = bragg & (np.abs(g - order / a) < 1e-6)
        assert beams.sum() == 4
        assert moving[beams].mean() / still[beams].mean() == pytest.approx(factor[beams][0], rel=0.04)
    ring = ~bragg & (np.abs(g - 0.75) < 0.1)
    atom = intensity(atoms[:1]) * cells**2
    assert moving[ring].mean() == pytest.approx((atom * (1 - factor))[ring].mean(), rel=0.05)


def test_mean_over_frozen_phonons_keeps_the_electrons_and_the_beams() -> None:
    """Against the mean potential: the same electrons in all; the bright field alike, more of them at high angles."""
    moving = replace(SMALL, rms_displacement_A={"Sr": 0.2, "Ti": 0.2, "O": 0.25}, frozen_phonons=8)
    phonons, blurred = thermal_patterns(moving), expected_patterns(forward_model(moving)[0])
    still = expected_patterns(forward_model(replace(SMALL, rms_displacement_A=0.0))[0])
    # One or two in a hundred pass by the detector, at 1.28 1/Å.
    np.testing.assert_allclose(phonons.sum((1, 2)), moving.electrons_per_pattern, rtol=0.02)
    k = np.hypot(*(np.indices((32, 32)) - 16)) * 0.08
    disk, far = k < 0.6, k > 1.2
    apart = [np.abs(phonons - other)[:, disk].sum() / phonons[:, disk].sum() for other in (blurred, still)]
    assert apart[0] < 0.4 * apart[1]
    assert phonons[:, far].sum() > 1.3 * blurred[:, far].sum()


def test_chance_depends_on_the_seed_alone_and_the_truth_on_no_chance() -> None:
    small = replace(SMALL, scan_shape=(1, 1), frozen_phonons=2)
    first, again, other = (simulate(replace(small, seed=seed)) for seed in (5, 5, 6))
    assert np.array_equal(first.patterns, again.patterns) and not np.array_equal(first.patterns, other.patterns)
    np.testing.assert_array_equal(first.truth_phase, other.truth_phase)
    np.testing.assert_array_equal(first.truth_phase, forward_model(replace(small, frozen_phonons=0))[1])
    seen: list[tuple[int, int]] = []
    thermal_patterns(small, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


def test_displacements_are_those_of_the_element() -> None:
    crystal = strontium_titanate(100.0, 40.0)
    rms = displacements_A(crystal, {"Sr": 0.09, "Ti": 0.07, "O": 0.1})
    moved = displaced(crystal, rms, np.random.default_rng(1)) - crystal
    for z, u in ((38, 0.09), (22, 0.07), (8, 0.1)):
        np.testing.assert_allclose(moved[crystal[:, 0] == z, 2:].std(0), u, rtol=0.05)
    assert not moved[:, :2].any()


@pytest.mark.parametrize(
    ("given", "message"),
    [({"Sr": 0.1}, "has no O, Ti"), ({"Sr": 0.1, "Ti": 0.1, "Ox": 0.1}, "'Ox'"), ({"Sr": -0.1}, "0 or more"), (float("nan"), "0 or more")],
)
def test_wrong_displacements_are_named(given: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        forward_model(replace(SMALL, rms_displacement_A=given))  # type: ignore[arg-type]
