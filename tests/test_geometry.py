"""Laws of the constants and of where the probe stood."""

from __future__ import annotations

import numpy as np
import pytest

from ptycho.aberrations import parse_aberrations
from ptycho.geometry import Geometry, interaction_parameter, raster_positions_A, wavelength_A

#: kV -> (lambda in Å, sigma in 1e-4 rad / (V Å)), from CODATA; Kirkland, Advanced Computing in Electron Microscopy, table 5.2 agrees.
CONSTANTS = {
    20: (0.085885, 18.641),
    30: (0.069791, 15.433),
    60: (0.048661, 11.357),
    80: (0.041757, 10.087),
    120: (0.033492, 8.638),
    200: (0.025079, 7.288),
    300: (0.019687, 6.526),
}


def geometry(**changes: object) -> Geometry:
    known = {"voltage_kV": 300.0, "semiangle_mrad": 20.0, "pixel_invA": 0.05, "pattern_shape": (64, 64)}
    return Geometry(**{**known, "positions_A": raster_positions_A((20, 30), (0.5, 0.4)), **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("voltage_kV", CONSTANTS)
def test_wavelength_and_interaction_parameter(voltage_kV: int) -> None:
    wavelength, sigma = CONSTANTS[voltage_kV]
    assert wavelength_A(voltage_kV) == pytest.approx(wavelength, abs=0.6e-6)
    assert interaction_parameter(voltage_kV) * 1e4 == pytest.approx(sigma, abs=0.6e-3)


def test_raster_runs_fast_axis_innermost_about_its_centre() -> None:
    positions = raster_positions_A((3, 4), (0.5, 0.2))
    np.testing.assert_allclose(positions.mean(0), 0, atol=1e-14)
    grid = positions.reshape(3, 4, 2)
    np.testing.assert_allclose(np.diff(grid[..., 0], axis=0), 0.5)
    np.testing.assert_allclose(np.diff(grid[..., 1], axis=1), 0.2)


def test_positive_rotation_turns_x_towards_y() -> None:
    positions = raster_positions_A((1, 2), (1.0, 2.0), rotation_deg=90)
    np.testing.assert_allclose(positions[1] - positions[0], [2.0, 0.0], atol=1e-14)


def test_affine_acts_before_the_rotation() -> None:
    affine = ((1.0, 0.1), (0.2, 0.9))  # y' = y + 0.1 x, x' = 0.2 y + 0.9 x
    plain, turned = raster_positions_A((3, 4), (0.5, 0.2)), raster_positions_A((3, 4), (0.5, 0.2), 30.0, affine)
    y, x = plain[:, 0] + 0.1 * plain[:, 1], 0.2 * plain[:, 0] + 0.9 * plain[:, 1]
    cos, sin = np.cos(np.pi / 6), np.sin(np.pi / 6)
    np.testing.assert_allclose(turned, np.stack([y * cos + x * sin, x * cos - y * sin], axis=1), atol=1e-14)


@pytest.mark.parametrize("rotation_deg", [0.0, 33.0])
def test_scan_area_of_a_raster(rotation_deg: float) -> None:
    positions = raster_positions_A((20, 30), (0.5, 0.4), rotation_deg) + 100
    # The points of a raster are a little less spread than its cells are.
    expected = 20 * 0.5 * 30 * 0.4 * np.sqrt((1 - 1 / 20**2) * (1 - 1 / 30**2))
    assert geometry(positions_A=positions).scan_area_A2 == pytest.approx(expected, rel=1e-9)


def test_geometry_knows_disk_and_defocus() -> None:
    known = geometry(aberrations=parse_aberrations({"defocus_A": 200.0, "C30": 1e4}))
    assert known.defocus_A == 200.0
    assert known.aperture_invA == pytest.approx(0.020 / 0.019687, rel=1e-4)
    assert known.disk_radius_px == pytest.approx(0.020 / 0.019687 / 0.05, rel=1e-4)


def test_equal_geometries_have_equal_positions() -> None:
    assert geometry() == geometry()
    assert geometry() != geometry(positions_A=raster_positions_A((20, 30), (0.5, 0.5)))
    assert geometry() != geometry(semiangle_mrad=21.0)
