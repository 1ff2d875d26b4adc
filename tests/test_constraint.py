"""Constraints act when they are due and change what they say, nothing else."""

import numpy as np
import pytest
import torch
from small import counts_of, make

from ptycho.constraint import (
    Amplitude,
    Constraint,
    Constraints,
    OrthogonalModes,
    PositivePhase,
    ProbePower,
    PurePhase,
    SliceSmoothing,
    normalise,
)
from ptycho.errors import RecipeError


def noisy(**options):
    model = make(scan=(3, 3), dtype=torch.float64, **options)
    noise = torch.randn(model.object.transmission.shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(1))
    model.object.transmission.data += 0.5 * noise
    return model


@pytest.mark.parametrize(
    ("start", "stop", "every", "epochs"),
    [(1, 0, 1, [1, 2, 3, 4, 5, 6, 7]), (3, 0, 1, [3, 4, 5, 6, 7]), (2, 5, 1, [2, 3, 4, 5]), (2, 0, 3, [2, 5]), (1, 6, 2, [1, 3, 5]), (4, 3, 1, [])],
)
def test_when_it_is_due(start, stop, every, epochs):
    constraint = PurePhase(start=start, stop=stop, every=every)
    assert [epoch for epoch in range(1, 8) if constraint.due(epoch)] == epochs


def test_only_what_is_due_is_applied():
    model = noisy()
    before = model.object.transmission.detach().clone()
    Constraints(pure_phase=PurePhase(start=2)).apply(model, 1)
    torch.testing.assert_close(model.object.transmission.detach(), before, rtol=0, atol=0)
    Constraints(pure_phase=PurePhase(start=2)).apply(model, 2)
    assert (model.object.transmission.abs() - 1).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (PurePhase, {"start": 0}, "start = 0"),
        (PurePhase, {"every": 0}, "every = 0"),
        (Amplitude, {"min": 1.2, "max": 1.1}, "min = 1.2"),
        (SliceSmoothing, {"sigma_A": 0.0}, "sigma_A = 0.0"),
        (ProbePower, {"electrons": -5.0}, "electrons = -5.0"),
        (PositivePhase, {"mean_phase_rad": -0.1}, "mean_phase_rad = -0.1"),
    ],
)
def test_impossible_numbers_are_refused(kind, options, words):
    with pytest.raises(RecipeError, match=words):
        kind(**options)


def test_a_constraint_has_to_say_what_it_does():
    with pytest.raises(AssertionError):
        Constraint().apply(noisy())


def test_positive_phase_leaves_amplitude_and_what_is_positive():
    model = noisy()
    before = model.object.transmission.detach().clone()
    PositivePhase(mean_phase_rad=0).apply(model)
    after = model.object.transmission.detach()
    torch.testing.assert_close(after.abs(), before.abs(), rtol=1e-12, atol=0)
    # Beyond -pi/2 it is a strong positive phase that has wrapped, not noise about zero.
    weak = (before.angle() < 0) & (before.angle() > -torch.pi / 2)
    torch.testing.assert_close(after.angle(), torch.where(weak, 0.0, before.angle()))
    assert weak.any() and (before.angle() > 2).any() and (before.angle() < -2).any()


def with_phase(phase, electrons):
    model = make(scan=(4, 4), dtype=torch.float64)
    model.probe.wave.data *= (electrons / model.probe.power().sum()).sqrt()
    model.object.transmission.data = torch.polar(torch.ones_like(phase), phase)[None, None]
    return model


def test_the_zero_of_the_phase_is_free_and_contrast_without_vacuum_survives():
    shape = make(scan=(4, 4)).object.transmission.shape[-2:]
    phase = 0.5 * torch.rand(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64) - 0.25
    model = with_phase(phase, 1e9)
    PositivePhase().apply(model)
    light = model.illumination()
    scanned = light > 0.5 * light.max()
    change = model.object.transmission.detach().angle()[0, 0][scanned] - phase[scanned]
    # One constant for all, but for the few lowest pixels that the prior allows to be clipped.
    assert ((change - change.median()).abs() < 1e-9).double().mean() > 0.98
    assert 0.2 < change.median() < 0.25


def test_noise_of_the_vacuum_is_clipped_at_low_dose():
    shape = make(scan=(4, 4)).object.transmission.shape[-2:]
    phase = 0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    model = with_phase(phase, 1e3)
    PositivePhase().apply(model)
    found = model.object.transmission.detach().angle()[0, 0]
    assert (found == 0).double().mean() > 0.4
    torch.testing.assert_close(found, phase.clamp_min(0))


def test_pure_phase_leaves_the_phase():
    model = noisy()
    before = model.object.transmission.detach().clone()
    PurePhase().apply(model)
    torch.testing.assert_close(model.object.transmission.detach(), torch.polar(torch.ones_like(before.real), before.angle()))


def test_zero_is_no_obstacle():
    dark = torch.zeros(3, 3, dtype=torch.complex64)
    normalise(dark)
    assert torch.isfinite(torch.view_as_real(dark)).all()
    model = noisy(slices=3)
    model.object.transmission.data[..., :5, :5] = 0
    for constraint in (Amplitude(max=1.0), PositivePhase(), SliceSmoothing(10.0), PurePhase()):
        constraint.apply(model)
        assert torch.isfinite(torch.view_as_real(model.object.transmission.detach())).all()


def test_amplitude_clamps_the_modulus_alone():
    model = noisy()
    before = model.object.transmission.detach().clone()
    Amplitude(min=0.8, max=1.05).apply(model)
    after = model.object.transmission.detach()
    torch.testing.assert_close(after.abs(), before.abs().clamp(0.8, 1.05))
    torch.testing.assert_close(after.angle(), before.angle())


def column(thickness, phase_of_slices, sigma):
    """Phase of each slice after smoothing, from a column of phases."""
    model = make(scan=(2, 2), slices=len(thickness), thickness_A=tuple(thickness), dtype=torch.float64)
    phase = torch.tensor(phase_of_slices, dtype=torch.float64)
    model.object.transmission.data.copy_(torch.polar(torch.ones_like(phase), phase)[:, None, None].expand(model.object.transmission.shape))
    SliceSmoothing(sigma_A=sigma).apply(model)
    return model.object.transmission.detach().angle()[0, :, 0, 0].numpy()


def test_smoothing_leaves_a_constant_density():
    thickness = np.array([5.0, 9.0, 3.0, 12.0, 7.0])
    np.testing.assert_allclose(column(thickness, 0.05 * thickness, 8.0), 0.05 * thickness, rtol=1e-10)


@pytest.mark.parametrize("sigma", [4.0, 10.0, 17.0])
def test_smoothing_spreads_one_slice_to_a_gaussian_in_angstrom(sigma):
    depth = np.arange(61) * 3.0
    spread = column(np.full(61, 3.0), np.eye(61)[30], sigma)
    assert spread.sum() == pytest.approx(1, rel=1e-9)
    assert (spread * depth).sum() == pytest.approx(90, rel=1e-9)
    assert np.sqrt((spread * (depth - 90) ** 2).sum()) == pytest.approx(sigma, rel=1e-4)
    if sigma >= 10:  # much wider than a slice: the shape too
        np.testing.assert_allclose(spread, 3 * np.exp(-((depth - 90) ** 2) / 2 / sigma**2) / sigma / np.sqrt(2 * np.pi), atol=0.03 * spread.max())


def test_smoothing_does_not_mix_top_and_bottom():
    spread = column(np.full(21, 5.0), np.eye(21)[0], 10.0)
    assert spread[-1] < 1e-9 and np.all(np.diff(spread) < 0)


def test_smoothing_keeps_the_projected_phase_of_unequal_slices():
    # Exactly, slice by slice and at the surfaces too: diffusion between closed ends conserves what diffuses.
    thickness = np.array([5.0, 9.0, 3.0, 12.0, 7.0])
    for first in np.eye(5):
        spread = column(thickness, first, 8.0)
        assert spread.sum() == pytest.approx(1, rel=1e-10)
        assert spread.min() > 0


def test_smoothing_acts_on_the_amplitude_as_well():
    model = make(scan=(2, 2), slices=3, dtype=torch.float64)
    model.object.transmission.data.fill_(1)
    model.object.transmission.data[:, 1] = 0.8
    SliceSmoothing(sigma_A=20.0).apply(model)
    amplitude = model.object.transmission.detach().abs()[0, :, 0, 0]
    assert amplitude.prod().item() == pytest.approx(0.8)
    assert 0.8 < amplitude[1] < amplitude[0] < 1


def test_orthogonal_modes_keep_the_patterns():
    model = make(scan=(3, 3), modes=3, dtype=torch.float64)
    noise = torch.randn(model.probe.wave.shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(1))
    model.probe.wave.data += 3 * noise
    before = counts_of(model)
    OrthogonalModes().apply(model)
    torch.testing.assert_close(counts_of(model), before, rtol=1e-10, atol=1e-9)
    flat = model.probe.wave.detach().flatten(1)
    gram = flat @ flat.mH
    assert (gram - torch.diag(gram.diagonal())).abs().max() < 1e-9 * gram.abs().max()
    assert (model.probe.power().diff() < 0).all()


def test_orthogonal_modes_are_left_as_they_are():
    # A mode that changed its sign between epochs would turn its momentum against itself.
    model = make(scan=(2, 2), modes=4, dtype=torch.float64)
    model.probe.wave.data *= torch.tensor([1.0, 0.8, 0.5, 0.3], dtype=torch.float64)[:, None, None]
    before = model.probe.wave.detach().clone()
    OrthogonalModes().apply(model)
    torch.testing.assert_close(model.probe.wave.detach(), before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("electrons", "wanted"), [(0.0, 1e5), (5e3, 5e3)])
def test_probe_power(electrons, wanted):
    model = make(scan=(2, 2), modes=2, dtype=torch.float64)
    before = model.probe.wave.detach().clone()
    model.probe.wave.data *= 3
    ProbePower(electrons=electrons).apply(model)
    assert model.probe.power().sum().item() == pytest.approx(wanted)
    torch.testing.assert_close(model.probe.wave.detach(), before * (wanted / 1e5) ** 0.5)
