"""Simulate, reconstruct, compare with the truth; and twins with the wrong model, which must do worse."""

import dataclasses

import numpy as np
import pytest
import torch
from small import correlation, counts_of, empty, flat, make, random_phase, solve, summed_phase

import ptycho
from ptycho.aberrations import parse_aberrations
from ptycho.geometry import Geometry, raster_positions_A
from ptycho.solvers import Gradient, MixedState, Updates
from ptycho.start import ModelOptions, start

STAGE = Gradient(epochs=10, batch=8)


def test_a_weak_phase_object_comes_back_quantitatively():
    truth = make()
    model = empty(truth)
    solve(STAGE, model, counts_of(truth))
    found, true = summed_phase(model), summed_phase(truth)
    assert correlation(found, true) > 0.98
    assert (found * true).sum() / (true * true).sum() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("electrons", [500.0, 3000.0])
def test_noise_is_survived(electrons):
    truth = make(scan=(12, 12), step_px=2.0, electrons=electrons, strength=1.0)
    counts = torch.poisson(counts_of(truth), generator=torch.Generator().manual_seed(0))
    model = empty(truth)
    solve(Gradient(epochs=12), model, counts)
    assert correlation(summed_phase(model), summed_phase(truth)) > (0.9 if electrons > 1000 else 0.75)


def two_slices():
    truth = make(scan=(9, 9), slices=2, strength=2.0, thickness_A=60.0)
    return truth, counts_of(truth)


def test_two_slices_explain_what_one_cannot():
    truth, counts = two_slices()
    model, single = empty(truth), empty(make(scan=(9, 9)))
    fixed = dataclasses.replace(STAGE, epochs=20, update=Updates(probe=0))
    double_loss, single_loss = (solve(fixed, m, counts)[-1] for m in (model, single))
    assert double_loss < 0.3 * single_loss
    rows = slice(24, 48)
    found, true = (m.object.transmission.detach().angle()[0, :, rows, rows].double().numpy() for m in (model, truth))
    right = [correlation(flat(found[s]), flat(true[s])) for s in (0, 1)]
    crossed = [correlation(flat(found[s]), flat(true[1 - s])) for s in (0, 1)]
    assert min(right) > 0.7 and min(right) > max(crossed) + 0.4


def test_two_probe_modes_explain_partial_coherence():
    truth = make(scan=(9, 9), modes=2)
    counts = counts_of(truth)
    coherent, one, two = empty(make(scan=(9, 9))), empty(make(scan=(9, 9))), empty(truth)
    losses = [solve(s, m, counts)[-1] for s, m in ((STAGE, one), (STAGE, two), (MixedState(epochs=10, modes=2), coherent))]
    assert losses[1] < 0.2 * losses[0] and losses[2] < 0.4 * losses[0]
    assert correlation(summed_phase(two), summed_phase(truth)) > 0.98


def test_object_states_explain_a_specimen_that_moves():
    truth = make(scan=(8, 8), states=2, strength=3.0, seed=2)
    counts = counts_of(truth)
    one, two = empty(make(scan=(8, 8))), empty(truth)
    noise = 0.01 * torch.randn(two.object.transmission.shape, generator=torch.Generator().manual_seed(0))
    two.object.transmission.data *= torch.polar(torch.ones_like(noise), noise)
    one_loss, two_loss = (solve(dataclasses.replace(STAGE, epochs=15, update=Updates(probe=0)), m, counts)[-1] for m in (one, two))
    assert two_loss < 0.8 * one_loss


def rectangle(rotation_deg=0.0, shape=(36, 28)):
    """A specimen seen on a rectangular detector with a turned scan: geometry, true model, counts."""
    where = Geometry(80.0, 25.0, 0.1, shape, raster_positions_A((8, 10), (0.9, 0.8), rotation_deg), parse_aberrations({"defocus_A": 80.0}))
    truth = start(where, ModelOptions(), 1e5, np.ones(shape, bool))
    phase = torch.from_numpy(random_phase(tuple(truth.object.transmission.shape), 0.8, seed=3)).float()
    truth.object.transmission.data.copy_(torch.polar(torch.ones_like(phase), phase))
    return where, truth, counts_of(truth)


@pytest.mark.parametrize("rotation_deg", [0.0, 30.0, -90.0])
def test_rectangular_patterns_and_turned_scans(rotation_deg):
    where, truth, counts = rectangle(rotation_deg)
    model = start(where, ModelOptions(), 1e5, np.ones((36, 28), bool))
    solve(STAGE, model, counts)
    assert correlation(summed_phase(model), summed_phase(truth)) > 0.97


@pytest.mark.parametrize("axis", [1, 2])
def test_flipped_patterns_fail(axis):
    where, truth, counts = rectangle()
    flipped = torch.roll(counts.flip(axis), 1, axis)  # zero frequency stays the first pixel
    model, twin = (start(where, ModelOptions(), 1e5, np.ones((36, 28), bool)) for _ in range(2))
    right, wrong = solve(STAGE, model, counts)[-1], solve(STAGE, twin, flipped)[-1]
    assert wrong > 5 * right
    # A defocused probe casts a shadow image, which does not depend on the detector's orientation: the coarse features survive.
    assert correlation(summed_phase(twin), summed_phase(truth)) < correlation(summed_phase(model), summed_phase(truth)) - 0.25


def test_a_wrong_scan_rotation_fails():
    where, _, counts = rectangle(30.0)
    straight, _, _ = rectangle(0.0)
    model, twin = (start(w, ModelOptions(), 1e5, np.ones((36, 28), bool)) for w in (where, straight))
    right, wrong = solve(STAGE, model, counts)[-1], solve(STAGE, twin, counts)[-1]
    assert wrong > 3 * right


def test_a_wrong_defocus_fails():
    truth = make(strength=1.0)
    fixed = dataclasses.replace(STAGE, update=Updates(probe=0))
    right, wrong = (solve(fixed, empty(m), counts_of(truth))[-1] for m in (truth, make(defocus_A=140.0)))
    assert wrong > 3 * right


def test_from_an_array_to_a_result():
    where, truth, counts = rectangle()
    patterns = torch.fft.fftshift(counts, dim=(1, 2)).reshape(8, 10, 36, 28).numpy()
    known = {"voltage_kV": 80.0, "semiangle_mrad": 25.0, "pixel_invA": 0.1, "step_A": (0.9, 0.8), "defocus_A": 80.0, "adu_per_electron": 1.0}
    result = ptycho.reconstruct(ptycho.read(patterns, **known), epochs=10, batch=8)
    rows, columns = result.scanned
    true = truth.object.transmission.detach().angle()[0, 0, rows, columns].double().numpy()
    assert result.phase.shape[1:] == truth.object.transmission.shape[-2:]
    assert correlation(flat(result.phase[0, rows, columns].astype(float)), flat(true)) > 0.97
    np.testing.assert_allclose(np.diff(result.positions_A, axis=0), np.diff(where.positions_A, axis=0), atol=1e-3)
