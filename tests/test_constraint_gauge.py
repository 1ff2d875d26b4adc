"""Ambiguities: object, probe and positions change together and every pattern stays."""

import math

import pytest
import torch
from small import counts_of, empty, make, solve

from ptycho.constraint import CentreProbe, Constraints, ObjectScale, OrthogonalModes, PhaseRamp, ProbePower
from ptycho.errors import RecipeError
from ptycho.solvers import EPIE, Gradient
from ptycho.solvers.base import Updates


def compact(slices=3, corrected=True, varies=False, **options):
    """A model whose probe is dark at the edge of its window and that has a random object with amplitude."""
    model = make(scan=(4, 4), slices=slices, modes=2, dtype=torch.float64, **options)
    noise = torch.randn(model.object.transmission.shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(1))
    model.object.transmission.data *= torch.exp(0.1 * noise)
    r = torch.arange(model.size, dtype=torch.float64) - model.size // 2
    spot = torch.exp(-(r[:, None] ** 2 + r**2) / 8)
    model.probe.wave.data = 80 * torch.stack([spot * torch.exp(0.3j * r), 0.5 * spot * r[:, None]]).to(torch.complex128)
    if varies:
        model.probe.variations = torch.nn.Parameter(torch.stack([spot * r[:, None], 1j * spot * r]))
        model.probe.coefficients = torch.nn.Parameter(10 * torch.stack([torch.arange(16) % 3 - 1, torch.arange(16) // 4 - 1.5], -1).double())
    if corrected:
        model.probe.correction_A.data[:] = torch.tensor([3.0, 1.0, -2.0])[: len(model.probe.correction_A)]
    return model


def slope_of(model):
    """Cycles per pixel along y and x of the projected phase in the scanned field."""
    o = model.object.transmission.detach().prod(1)[0]
    light = model.illumination()
    seen = (light > 0.5 * light.max()) * light
    steps = (seen[:-1] * o[1:] * o[:-1].conj()).sum(), (seen[:, :-1] * o[:, 1:] * o[:, :-1].conj()).sum()
    return torch.stack(steps).angle() / (2 * math.pi)


def ramped(model, slope=(0.02, -0.03)):
    y, x = (torch.arange(n, dtype=torch.float64) for n in model.object.transmission.shape[-2:])
    model.object.transmission.data[:, -1] *= torch.exp(2j * math.pi * (slope[0] * y[:, None] + slope[1] * x))
    return model


@pytest.mark.parametrize(("offset", "corrected"), [(0.0, False), (0.37, False), (0.0, True)])
def test_a_ramp_becomes_tilt_and_the_patterns_stay(offset, corrected):
    model = ramped(compact(corrected=corrected))
    model.positions.value_px.data += offset
    before = counts_of(model)
    assert slope_of(model).abs().min() > 0.01
    PhaseRamp().apply(model)
    assert slope_of(model).abs().max() < (1e-3 if corrected else 1e-9)  # tilt moves an aberrated probe: a little of the light goes elsewhere
    torch.testing.assert_close(counts_of(model), before, rtol=1e-7, atol=1e-7 * before.max().item())


def test_without_a_ramp_nothing_happens():
    model = ramped(compact(corrected=False))
    PhaseRamp().apply(model)
    before = model.object.transmission.detach().clone(), model.probe.wave.detach().clone()
    PhaseRamp().apply(model)
    torch.testing.assert_close(model.object.transmission.detach(), before[0])
    torch.testing.assert_close(model.probe.wave.detach(), before[1])


@pytest.mark.parametrize("shift", [(2.0, -1.0), (0.3, 1.6)])
def test_the_probe_is_centred_and_the_patterns_stay(shift):
    model = compact(slices=1, corrected=False)
    f = torch.fft.fftfreq(model.size, dtype=torch.float64)
    ramp = torch.exp(-2j * math.pi * (f[:, None] * shift[0] + f * shift[1]))
    model.probe.wave.data = torch.fft.ifft2(torch.fft.fft2(model.probe.wave.data) * ramp)
    before, positions = counts_of(model), model.positions.value_px.detach().clone()
    CentreProbe().apply(model)
    torch.testing.assert_close(counts_of(model), before, rtol=1e-7, atol=1e-7 * before.max().item())
    light = model.probe.wave.detach().abs().square().sum(0)
    r = torch.arange(model.size, dtype=torch.float64) - model.size // 2
    assert (light.sum(1) @ r).abs() < 1e-6 * light.sum() and (light.sum(0) @ r).abs() < 1e-6 * light.sum()
    torch.testing.assert_close(model.positions.value_px.detach() - positions, torch.tensor(shift).double().expand_as(positions), rtol=0, atol=0.05)


def test_windows_stay_on_the_canvas():
    model = compact()
    model.probe.wave.data = torch.roll(model.probe.wave.data, 12, -1)
    CentreProbe().apply(model)
    corners, _ = model.positions.split(torch.arange(16), model.size)
    room = torch.tensor(model.object.transmission.shape[-2:])
    assert (corners >= 0).all() and (corners + model.size <= room).all()


def test_scale_goes_to_the_probe_and_the_patterns_stay():
    model = compact()
    model.object.transmission.data *= torch.tensor([0.5, 3.0, 1.3], dtype=torch.float64)[:, None, None]
    before = counts_of(model)
    ObjectScale().apply(model)
    torch.testing.assert_close(counts_of(model), before)
    light = model.illumination()
    passed = (model.object.transmission.detach().abs().square() * light).sum((-2, -1)) / light.sum()
    torch.testing.assert_close(passed, torch.ones_like(passed))


def test_two_that_decide_about_one_thing_are_refused():
    with pytest.raises(RecipeError, match="leave one of them out"):
        Constraints(object_scale=ObjectScale(), probe_power=ProbePower())


@pytest.mark.parametrize("solver", [Gradient, EPIE])
def test_a_run_converges_as_fast_with_them(solver):
    truth = make(scan=(8, 8), electrons=2e4, strength=0.6)
    counts, r = counts_of(truth), torch.arange(32.0) - 16
    found = []
    for gauges in ({}, {"object_scale": ObjectScale(), "phase_ramp": PhaseRamp(), "centre_probe": CentreProbe()}):
        model = empty(truth)
        model.probe.wave.data = torch.roll(model.probe.wave.data * torch.exp(0.1j * (r[:, None] - r)), 1, -1)
        found.append(solve(solver(epochs=8, loss="amplitude", update=Updates(probe=1), constraints=Constraints(**gauges)), model, counts)[-1])
    assert found[1] < 1.1 * found[0]


@pytest.mark.parametrize("constraint", [PhaseRamp(), CentreProbe(), ObjectScale(), OrthogonalModes()], ids=lambda c: type(c).__name__)
def test_a_varying_probe_goes_along(constraint):
    model = ramped(compact(slices=1, varies=True))
    model.probe.wave.data = torch.roll(model.probe.wave.data, 1, -1)
    model.probe.variations.data = torch.roll(model.probe.variations.data, 1, -1)
    before = counts_of(model)
    still = counts_of(compact(slices=1))
    assert (counts_of(compact(slices=1, varies=True)) - still).abs().max() > 1e-3 * still.max()
    constraint.apply(model)
    torch.testing.assert_close(counts_of(model), before, rtol=1e-7, atol=1e-7 * before.max().item())
