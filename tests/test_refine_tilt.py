"""The lean of a stack of slices is a tilt: the patterns say so, and a reconstruction from tilt zero finds it."""

import copy

import pytest
import torch
from small import PIXEL_A, correlation, counts_of, empty, make, solve, summed_phase

from ptycho.solvers import Gradient, Updates
from ptycho.solvers.refine_tilt import lean_rad, straighten


def crystal(tilt_mrad=(0.0, 0.0), slices=6, strength=2.5):
    """Columns along the beam, 180 Å thick."""
    model = make(scan=(10, 10), step_px=2.5, slices=slices, strength=strength, thickness_A=180.0 / slices, tilt_mrad=tilt_mrad)
    transmission = model.object.transmission.data
    transmission.copy_(transmission[:, :1].expand_as(transmission))
    return model


def leaning(model, rad):
    """Slices displaced over depth."""
    moved = copy.deepcopy(model)
    n = moved.object.transmission.shape[1]
    depth = torch.arange(n) * moved.propagator.thickness_A[0].item() / PIXEL_A
    fy, fx = (torch.fft.fftfreq(k) for k in moved.object.transmission.shape[-2:])
    angle = -2 * torch.pi * depth[:, None, None] * (rad[0] * fy[:, None] + rad[1] * fx)
    spectra = torch.fft.fft2(moved.object.transmission.data - 1) * torch.polar(torch.ones_like(angle), angle)
    moved.object.transmission.data = torch.fft.ifft2(spectra) + 1
    return moved


def test_the_lean_of_slices_is_measured():
    model = leaning(crystal(), (8e-3, -5e-3))
    # The windows of the slices stay while what is in them moves, so that a little is missing.
    torch.testing.assert_close(lean_rad(model), torch.tensor([8e-3, -5e-3]), rtol=0.2, atol=0)


def test_upright_columns_stay():
    assert lean_rad(crystal()).abs().max() < 1e-4


def test_to_straighten_leaves_the_patterns():
    model = leaning(crystal(), (8e-3, -5e-3))
    before = counts_of(model)
    turned = copy.deepcopy(model)
    for _ in range(3):
        straighten(turned)
    assert lean_rad(turned).abs().max() < 1e-4
    assert (turned.propagator.tilt_rad - torch.tensor([[8e-3, -5e-3]])).abs().max() < 3e-4
    change = (counts_of(turned) - before).abs().sum() / before.sum()
    leant = (counts_of(crystal()) - before).abs().sum() / before.sum()
    assert change < 0.02 < leant


def test_slices_that_have_nothing_in_common_have_no_lean():
    model = make(slices=4, strength=2.0)
    assert lean_rad(model) is None
    before = copy.deepcopy(model)
    straighten(model)
    torch.testing.assert_close(model.object.transmission, before.object.transmission)


def test_a_single_slice_has_no_lean():
    assert lean_rad(make()) is None


@pytest.mark.parametrize("slices", [6, 9])
def test_tilt_comes_back_from_zero_with_the_object(slices):
    truth = crystal((8.0, -5.0), slices)
    model = empty(truth)
    model.propagator.tilt_rad.data.zero_()
    upright = copy.deepcopy(model)
    counts = counts_of(truth)
    solve(Gradient(epochs=10, batch=8, update=Updates(probe=0, tilt=1)), model, counts)
    solve(Gradient(epochs=10, batch=8, update=Updates(probe=0)), upright, counts)
    assert (model.propagator.tilt_rad - truth.propagator.tilt_rad).abs().max() < 1e-3
    assert lean_rad(model).abs().max() < 1e-3
    found, not_found = (correlation(summed_phase(m, truth), summed_phase(truth)) for m in (model, upright))
    assert found > max(0.95, not_found)
