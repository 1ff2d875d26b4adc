"""A known affine map between positions is found, in the microscope's terms."""

import numpy as np
import pytest

from ptycho.affine import affine_between
from ptycho.geometry import raster_positions_A


@pytest.mark.parametrize("rotation_deg", [0.0, 3.0, -170.0])
def test_a_known_map_comes_back(rotation_deg):
    nominal = raster_positions_A((7, 9), (0.7, 0.5))
    lean = np.tan(np.radians(2.0))
    found = raster_positions_A((7, 9), (0.7, 0.5), rotation_deg, ((1.02, 0.0), (1.02 * lean, 0.95))) + [3.0, -1.0]
    map_ = affine_between(nominal, found)
    assert map_.rotation_deg == pytest.approx(rotation_deg)
    assert (map_.scale_y, map_.scale_x, map_.shear_deg) == pytest.approx((1.02, 0.95, 2.0))
    assert map_.shift == pytest.approx([3.0, -1.0])
    assert map_.residual_rms < 1e-12


def test_a_linear_drift_is_affine():
    nominal = raster_positions_A((8, 8), (0.5, 0.5))
    time = np.arange(64)[:, None] / 64
    map_ = affine_between(nominal, nominal + time * [0.3, 0.8])
    assert map_.residual_rms < 1e-12
    assert map_.shear_deg > 5


def test_jitter_is_the_residual():
    nominal = raster_positions_A((30, 30), (0.5, 0.5))
    jitter = np.random.default_rng(0).normal(0, 0.1, nominal.shape)
    map_ = affine_between(nominal, nominal * 1.01 + jitter)
    assert map_.residual_rms == pytest.approx(0.1 * np.sqrt(2), rel=0.05)
    assert map_.scale_x == pytest.approx(1.01, abs=2e-3)


def test_a_single_line_keeps_what_it_does_not_show():
    nominal = raster_positions_A((1, 9), (0.5, 0.5))
    map_ = affine_between(nominal, nominal * 1.1)
    assert (map_.scale_y, map_.scale_x, map_.rotation_deg) == pytest.approx((1.0, 1.1, 0.0))
    assert "fast" in str(map_)
