"""Displacements, curl and likelihood of bright-field images: signs and sizes on simulated scans, symmetries that must hold exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptycho.aberrations import parse_aberrations
from ptycho.bright_field import BrightField, bright_field
from ptycho.curl import fit_curl
from ptycho.data import Dataset4D
from ptycho.errors import DataError, RecipeError
from ptycho.optics import aberration_phase
from ptycho.pose import angle_between_deg, turn
from ptycho.shifts import fit_shifts
from ptycho.simulation import Simulation, simulate
from ptycho.tilt_corrected import parallax
from ptycho.weak_phase import Optics, WeakPhase, coarse_likelihood, scan_optics

TRUE = Simulation(
    scan_shape=(20, 20), pattern_px=36, pixel_invA=1 / 14, defocus_A=120.0, dose_e_per_A2=2e5, rotation_deg=17.0,
    aberrations={"C12": 20.0, "phi12_deg": 25.0},
)  # fmt: skip
#: A monolayer acts in its middle, some Å below the entrance.
MIDDLE = 3.0


@pytest.fixture(scope="module")
def data() -> Dataset4D:
    return simulate(TRUE).dataset()


@pytest.fixture(scope="module")
def bright(data: Dataset4D) -> BrightField:
    return bright_field(data)


def test_images_are_relative_to_the_disk(bright: BrightField) -> None:
    assert bright.images.shape[2:] == (20, 20) and not bright.images[~bright.inside].any()
    np.testing.assert_allclose(bright.images.mean((2, 3)), 0, atol=1e-5)
    assert np.linalg.norm(bright.k_inside_invA, axis=1).max() < bright.aperture_invA
    # A part of the disk holds its share of the electrons, but for what the specimen scatters out of it.
    assert bright.electrons * (bright.aperture_invA**2 * np.pi * 14**2) == pytest.approx(bright.electrons_per_pattern, rel=0.15)


def test_displacements_tell_turn_handedness_and_defocus(bright: BrightField) -> None:
    best, other = fit_shifts(bright, 14.0)
    assert not best.mirrored and best.contrast > 2 * other.contrast
    assert angle_between_deg(best.orientation, turn(17)) < 4
    # Some waves from focus the images' own contrast draws the displacements together: a start, not the answer.
    assert best.underfocus_A2 / bright.wavelength_A == pytest.approx(120 - MIDDLE, rel=0.25)


def test_the_likelihood_tells_turn_defocus_and_astigmatism(bright: BrightField) -> None:
    weak = WeakPhase(bright)
    explained, optics = weak.fit(Optics(10.0, False, -100.0))
    assert explained > 0.5
    assert optics.angle_deg == pytest.approx(17, abs=1)
    assert pytest.approx(120 - MIDDLE, abs=10) == -optics.C10_A
    assert np.hypot(optics.C12a_A, optics.C12b_A) == pytest.approx(20, abs=4)
    assert np.degrees(np.arctan2(optics.C12b_A, optics.C12a_A)) / 2 == pytest.approx(25, abs=6)
    # The twin explains the same, and its phase is the negative: only that atoms are positive tells them apart.
    assert weak.explained(optics.twin) == pytest.approx(explained, rel=1e-4)
    assert weak.skewness(optics) > 0.35 and weak.skewness(optics.twin) == pytest.approx(-weak.skewness(optics), rel=1e-3)
    assert weak.explained(Optics(17.0, True, -120.0)) < 0.5 * explained
    assert weak.explained(Optics(17.0, False, 120.0)) < 0.2 * explained


def test_transfer_is_that_of_the_probe(bright: BrightField) -> None:
    """gamma = P*(k) P(k - Q) - P(k) P*(k + Q), with the phases of the package's own probe."""
    weak, optics = WeakPhase(bright), Optics(30.0, True, -150.0, 20.0, -10.0)
    q = torch.tensor([[0.21, -0.13], [0.02, 0.05]])
    detector = q @ torch.from_numpy(optics.orientation.T).float()

    def probe(k: torch.Tensor) -> torch.Tensor:
        inside = ((bright.aperture_invA - torch.hypot(k[..., 0], k[..., 1])) * 14 + 0.5).clamp(0, 1)
        return torch.polar(inside, -aberration_phase(optics.aberrations, k[..., 0], k[..., 1], bright.wavelength_A))

    k, inner = weak.k, torch.polar(torch.ones(len(weak.k)), -aberration_phase(optics.aberrations, weak.k[:, 0], weak.k[:, 1], bright.wavelength_A))
    for row, shift in enumerate(detector):
        expected = inner.conj() * probe(k - shift) - inner * probe(k + shift).conj()
        torch.testing.assert_close(weak.transfer(optics, q)[row], expected, atol=1e-3, rtol=0)


def test_optics_are_those_of_a_recipe() -> None:
    c10, c12 = Optics(0.0, False, -120.0, 10.0, 5.0).aberrations
    given = parse_aberrations({"defocus_A": 120.0, "C12": np.hypot(10, 5), "phi12_deg": np.degrees(np.arctan2(5, 10)) / 2})
    np.testing.assert_allclose([c10.a, c12.a, c12.b], [given[0].a, given[1].a, given[1].b])
    mirrored = Optics(40.0, True, 1.0)
    assert Optics.of(mirrored.orientation, 1.0).angle_deg == pytest.approx(40) and np.linalg.det(mirrored.orientation) < 0


def test_in_focus_curl_and_likelihood_find_the_turn() -> None:
    bright = bright_field(simulate(Simulation(scan_shape=(24, 24), step_A=0.5, pattern_px=32, pixel_invA=1 / 12, defocus_A=5.0, dose_e_per_A2=3e5,
                                              rotation_deg=-126.0)).dataset())  # fmt: skip
    right, wrong = fit_curl(bright)
    assert right.share < 0.1 < 0.3 < wrong.share
    assert min(angle_between_deg(sign * right.orientation, turn(-126)) for sign in (1, -1)) < 3
    weak = WeakPhase(bright)
    _, optics = max((weak.fit(start) for start in scan_optics(coarse_likelihood(bright))), key=lambda fit: fit[0])
    optics = optics if weak.skewness(optics) > 0 else optics.twin
    assert angle_between_deg(optics.orientation, turn(-126)) < 1
    assert pytest.approx(5 - MIDDLE, abs=10) == -optics.C10_A


def test_parallax_shows_atoms_finer_than_the_scan(data: Dataset4D) -> None:
    seen = parallax(data, upsample=3)
    assert seen.phase.shape == seen.bright_field.shape == (60, 60) and seen.pixel_A == pytest.approx((0.8 / 3, 0.8 / 3))
    assert seen.defocus_A == pytest.approx(120 - MIDDLE, abs=10)
    # Underfocus makes atoms dark, and the phase undoes it.
    inner = (slice(9, -9), slice(9, -9))
    assert np.corrcoef(seen.phase[inner].ravel(), seen.bright_field[inner].ravel())[0, 1] < -0.3
    # The scan's own grid stops at 0.62 1/Å; lattice frequencies beyond must be there, those of the 2.73 Å lattice at 0.73 1/Å.
    spectrum = np.abs(np.fft.fft2(seen.phase * np.hanning(60)[:, None] * np.hanning(60)))
    f = np.fft.fftfreq(60, 0.8 / 3)
    ring = np.abs(np.hypot(f[:, None], f) - 0.733) < 0.03
    outside = np.abs(np.hypot(f[:, None], f) - 0.83) < 0.03
    assert spectrum[ring].max() > 3 * spectrum[outside].max()


def test_what_cannot_be_used_is_told(data: Dataset4D) -> None:
    with pytest.raises(RecipeError, match="upsample = 0"):
        parallax(data, upsample=0)
    with pytest.raises(DataError, match="too small to be calibrated"):
        bright_field(simulate(Simulation(scan_shape=(2, 3), pattern_px=32, pixel_invA=1 / 12, defocus_A=50.0)).dataset())
