"""A scan that was told wrongly is found out before the reconstruction."""

import pytest

from ptycho.scan_fit import fit_scan
from ptycho.simulation import Simulation, simulate


@pytest.mark.parametrize(
    "told", [{"step_A": (0.84, 0.84), "rotation_deg": 3.0, "defocus_A": 180.0}, {"affine": ((1.0, 0.0), (0.05, 1.0)), "defocus_A": 240.0}]
)
def test_a_wrong_scan_and_a_wrong_defocus_are_repaired(told):
    true = Simulation(scan_shape=(14, 14), defocus_A=200.0, pattern_px=64, pixel_invA=1 / 16, dose_e_per_A2=1e5)
    fit = fit_scan(simulate(true).dataset(**told))
    told_step, lean = told.get("step_A", (0.8, 0.8))[0], told.get("affine", ((1.0, 0.0), (0.0, 1.0)))[1][0]
    assert (fit.affine.scale_y, fit.affine.scale_x) == pytest.approx((0.8 / told_step, 0.8 / told_step), rel=0.006)
    assert fit.affine.rotation_deg == pytest.approx(-told.get("rotation_deg", 0.0), abs=0.3)
    assert fit.affine.shear_deg == pytest.approx(-57.3 * lean, abs=0.3)
    assert fit.defocus_A == pytest.approx(200.0, abs=12)
    assert "defocus" in str(fit)
