"""3PIE is ePIE for one slice, what the paper says for two, and it tells two slices apart."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from small import correlation, counts_of, empty, flat, make, solve

from ptycho.adjoint import Likelihood
from ptycho.constraint import Constraints
from ptycho.loss import Loss
from ptycho.solvers import EPIE, Updates
from ptycho.solvers.three_pie import Rates, three_pie

PLAIN = {"loss": "amplitude", "update": Updates(object=1, probe=1), "constraints": Constraints(), "epochs": 2}


def exact(**options):
    """A model in float64 whose positions are whole pixels and whose detector has no pixel area."""
    return make(scan=(4, 4), step_px=3.0, size=24, defocus_A=60.0, dtype=torch.float64, pixel_area=False, **options)


@pytest.mark.parametrize("options", [{"batch": 1, "object_damping": 0.2, "probe_damping": 0.3, "momentum": 0.5, "momentum_every": 3}, {"batch": 4}])
def test_one_slice_is_epie(options):
    counts = counts_of(exact(modes=2)) * 1.1
    models = [exact(modes=2, seed=1) for _ in range(2)]
    for model, by_slice in zip(models, (False, True), strict=True):
        solve(EPIE(**PLAIN, **options, slice_by_slice=by_slice), model, counts)
    one, other = models
    for a, b in ((one.object.transmission.data, other.object.transmission.data), (one.probe.wave.data, other.probe.wave.data)):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-6 * a.abs().max().item())


def test_two_slices_are_updated_as_published():
    truth = exact(slices=2)
    counts = counts_of(truth)[5:6]
    model = exact(slices=2, seed=1)
    start = copy.deepcopy(model)
    three_pie(Likelihood(model, Loss("amplitude")), torch.tensor([5]), counts, Rates(1.0, 1.0, 1.0, 1.0))
    first, second = start.object.transmission.detach().numpy()[0].copy()
    probe, kernel = start.probe.wave.detach().numpy()[0], start.propagator.kernels(torch.tensor([5]))[0, 0].detach().numpy()
    y, x = start.positions.value_px.detach()[5].int().tolist()
    window = (slice(y - 12, y + 12), slice(x - 12, x + 12))
    one, two = first[window].copy(), second[window].copy()
    psi = np.fft.ifft2(np.fft.fft2(probe * one) * kernel)
    far = np.fft.fft2(psi * two)
    change = np.fft.ifft2(far * (np.sqrt(counts[0].numpy() * far.size) / np.abs(far) - 1))
    second[window] += psi.conj() * change / (np.abs(psi) ** 2).max()
    change = np.fft.ifft2(np.fft.fft2(two.conj() * change / (np.abs(two) ** 2).max()) * kernel.conj())
    first[window] += probe.conj() * change / (np.abs(probe) ** 2).max()
    probe = probe + one.conj() * change / (np.abs(one) ** 2).max()
    np.testing.assert_allclose(model.object.transmission.detach().numpy()[0], np.stack([first, second]), rtol=0, atol=1e-10)
    np.testing.assert_allclose(model.probe.wave.detach().numpy()[0], probe, rtol=0, atol=1e-8)


def test_two_slices_are_told_apart():
    truth = make(scan=(9, 9), slices=2, strength=2.0, thickness_A=60.0)
    model = empty(truth)
    losses = solve(EPIE(epochs=20, batch=4, slice_by_slice=True, update=Updates(probe=0)), model, counts_of(truth))
    assert losses[-1] < 0.1 * losses[0]
    rows = slice(24, 48)
    found, true = (m.object.transmission.detach().angle()[0, :, rows, rows].double().numpy() for m in (model, truth))
    right = [correlation(flat(found[s]), flat(true[s])) for s in (0, 1)]
    crossed = [correlation(flat(found[s]), flat(true[1 - s])) for s in (0, 1)]
    assert min(right) > 0.7 and min(right) > max(crossed) + 0.4


def test_what_is_not_due_stays_and_the_rest_is_refined():
    truth = make(scan=(4, 4), slices=2, states=2, modes=2)
    counts = counts_of(truth)
    counts[0, 1, 2] = torch.nan
    model = empty(truth)
    solver = EPIE(epochs=2, slice_by_slice=True, constraints=Constraints(), update=Updates(object=1, probe=0, positions=2))
    solve(solver, model, counts)
    assert torch.equal(model.probe.wave, truth.probe.wave)
    assert not torch.equal(model.positions.value_px, truth.positions.value_px)
    solve(dataclasses.replace(solver, update=Updates(object=0, probe=1)), model, counts)
    assert not torch.equal(model.probe.wave, truth.probe.wave)
