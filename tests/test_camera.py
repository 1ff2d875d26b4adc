"""What the detector adds: point spread by its MTF or by misplaced electrons, and patterns that move with the scan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ptycho.camera import spread
from ptycho.errors import RecipeError
from ptycho.geometry import wavelength_A
from ptycho.simulation import Simulation, expected_patterns, forward_model, simulate

VACUUM = Simulation("vacuum", scan_shape=(3, 4), pattern_px=32, pixel_invA=0.06, defocus_A=160.0, read_noise_electrons=0.0)


def gaussian_mtf(sigma_px: float) -> tuple[tuple[float, float], ...]:
    f = np.linspace(0, 0.75, 61)
    return tuple(zip(f.tolist(), np.exp(-2 * (np.pi * sigma_px * f) ** 2).tolist(), strict=True))


def test_one_bright_pixel_shows_the_point_spread() -> None:
    """The MTF of a Gaussian gives a Gaussian, about the pixel, with all electrons."""
    bright = np.zeros((2, 33, 40), np.float32)
    bright[0, 16, 20] = bright[1, 10, 30] = 1000
    image = spread(bright, gaussian_mtf(1.2))
    np.testing.assert_allclose(image.sum((1, 2)), 1000, rtol=1e-3)
    y, x = np.indices((33, 40))
    for one, (row, column) in zip(image, ((16, 20), (10, 30)), strict=True):
        point = np.exp(-((y - row) ** 2 + (x - column) ** 2) / 2 / 1.2**2)
        np.testing.assert_allclose(one, 1000 * point / (2 * np.pi * 1.2**2), atol=0.3)


def test_no_loss_of_contrast_changes_nothing_and_what_leaves_does_not_come_back() -> None:
    random = np.random.default_rng(0).poisson(5, (3, 16, 16)).astype(np.float32)
    np.testing.assert_allclose(spread(random, ((0, 1), (1, 1))), random, atol=1e-4)
    corner = np.zeros((16, 16), np.float32)
    corner[0, 0] = 1000
    image = spread(corner, gaussian_mtf(1.0))
    assert image[-3:].max() < 0.1 and image[:, -3:].max() < 0.1 and 300 < image.sum() < 600


def test_integrated_signal_shares_its_noise_and_counted_electrons_do_not() -> None:
    """Far below the Poisson variance with the MTF, and correlated between neighbours; Poisson's own with misplaced electrons."""
    flat = replace(VACUUM, scan_shape=(6, 6), dose_e_per_A2=1e5)
    inside = np.hypot(*(np.indices((32, 32)) - 16)) * 0.06 < 0.6 * 24.9e-3 / wavelength_A(80.0)

    def noise(simulation: Simulation) -> float:
        patterns = simulate(simulation).patterns.reshape(-1, 32, 32)[:, inside]
        return float(((patterns - patterns.mean(0)).var(0, ddof=1) / patterns.mean(0)).mean())

    assert noise(replace(flat, detector_blur_px=0.8)) == pytest.approx(1, abs=0.1)
    # The sum of the squares of the point spread, 1 / (4 pi sigma²).
    assert noise(replace(flat, detector_mtf=gaussian_mtf(0.8))) == pytest.approx(1 / (4 * np.pi * 0.64), abs=0.03)


def test_misplaced_electrons_widen_the_edge_by_their_variance() -> None:
    """The second moment of the pattern grows by sigma² along each axis; the electrons are kept."""
    sharp, blurred = (expected_patterns(forward_model(replace(VACUUM, scan_shape=(1, 1), detector_blur_px=b))[0])[0] for b in (0.0, 1.2))
    assert blurred.sum() == pytest.approx(sharp.sum(), rel=1e-3)
    k = np.arange(32) - 16
    wider = [((p.sum(1) * k**2).sum() / p.sum(), (p.sum(0) * k**2).sum() / p.sum()) for p in (sharp, blurred)]
    np.testing.assert_allclose(np.subtract(*wider[::-1]), 1.2**2, rtol=0.02)


def test_patterns_move_with_the_scan() -> None:
    """Rows move with the slow axis, columns with the fast one; from end to end by the angle that was asked for."""
    descan = (4.0, -3.0)
    patterns = expected_patterns(forward_model(replace(VACUUM, descan_mrad=descan))[0])
    k = (np.arange(32) - 16) * 0.06 * wavelength_A(80.0) * 1e3
    centre = np.stack([(patterns.sum(2) @ k), (patterns.sum(1) @ k)], -1) / patterns.sum((1, 2))[:, None]
    by_scan = centre.reshape(3, 4, 2)
    np.testing.assert_allclose(by_scan[-1, -1] - by_scan[0, 0], descan, rtol=0.02)
    np.testing.assert_allclose(by_scan[:, 0, 1] - by_scan[0, 0, 1], 0, atol=0.02)
    np.testing.assert_allclose(np.diff(by_scan[:, :, 0], axis=0), 2.0, rtol=0.03)
    np.testing.assert_allclose(by_scan.mean((0, 1)), 0, atol=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"detector_mtf": ((0.0, 0.9),)}, "first"),
        ({"detector_mtf": ((0.0, 1.0), (0.5, 0.3), (0.4, 0.2))}, "rising"),
        ({"detector_mtf": ((0.0, 1.0), (0.5, float("nan")))}, "pairs"),
        ({"detector_blur_px": -1.0}, "detector_blur_px"),
        ({"descan_mrad": (1.0,)}, "descan_mrad"),
    ],
)
def test_wrong_numbers_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        replace(VACUUM, **change)  # type: ignore[arg-type]
