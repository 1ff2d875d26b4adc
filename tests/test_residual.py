"""A perfect model leaves nothing but noise at every angle and every dose; a wrong one is told by the ring where it is wrong."""

from __future__ import annotations

import numpy as np
import pytest
import small
import torch

from ptycho.geometry import Geometry
from ptycho.residual import residual_by_angle

GEOMETRY = Geometry(80.0, 25.0, 1 / (32 * small.PIXEL_A), (32, 32), np.zeros((64, 2)), ())


def residual(model, counts):
    return residual_by_angle(model, small.Counts(counts), GEOMETRY)


@pytest.mark.parametrize("electrons", [100.0, 1e4])
def test_a_perfect_model_leaves_noise(electrons):
    model = small.make(electrons=electrons, step_px=1.0, scan=(16, 16))
    counts = torch.poisson(small.counts_of(model), generator=torch.Generator().manual_seed(0))
    found = residual(model, counts)
    busy = found.modelled_e * 2000 > 50  # rings of some fifty electrons in 256 patterns
    assert busy.sum() > 4 and found.noise_scale > 0.85
    np.testing.assert_allclose(found.chi_squared[busy], 1, atol=0.25)
    np.testing.assert_allclose(found.deviance[busy], 1, atol=0.25)
    assert np.diff(found.angle_mrad) == pytest.approx(41.757 / (32 * small.PIXEL_A), rel=1e-3)


def test_a_ring_that_the_model_lacks_is_told_where_it_is():
    model = small.make(electrons=2e4)
    extra = small.counts_of(model)
    k = torch.fft.fftfreq(32) * 32
    ring = torch.round(torch.hypot(k[:, None], k))
    extra[:, ring == 12] += 20
    counts = torch.poisson(extra, generator=torch.Generator().manual_seed(0))
    found = residual(model, counts)
    assert found.chi_squared.argmax() == found.deviance.argmax() == 12
    assert found.measured_e[12] - found.modelled_e[12] == pytest.approx(20, rel=0.05)
    assert found.chi_squared[:10].max() < 1.3


def test_what_is_not_measured_does_not_count():
    mask = torch.ones(32, 32)
    mask[0, 0] = 0
    model = small.make(mask=mask)
    counts = small.counts_of(model)
    counts[:, 0, 0] = 1e6
    counts[3, 5, 5] = torch.nan
    found = residual(model, counts)
    assert found.angle_mrad[0] > 0 and found.chi_squared.max() < 1e-3 and np.isfinite(found.deviance).all()


def test_the_noise_scale_is_taken_into_account():
    """Each electron makes five counts, each on a pixel of its own: the pixels have a fifth of Poisson's noise."""
    model = small.make(electrons=2000.0, step_px=0.5, scan=(16, 16))
    counts = torch.poisson(5 * small.counts_of(model), generator=torch.Generator().manual_seed(0)) / 5
    found = residual(model, counts)
    bright = found.modelled_e > 1
    assert found.noise_scale == pytest.approx(0.2, abs=0.06) and found.chi_squared[bright].mean() == pytest.approx(1, abs=0.25)
