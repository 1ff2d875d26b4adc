"""Constraints act when they are due and change what they say, nothing else."""

import numpy as np
import pytest
import torch
from small import counts_of, make

from ptycho.constraint import (
    Absorption,
    Amplitude,
    Constraint,
    Constraints,
    GridFilter,
    LowPass,
    OrthogonalModes,
    PhaseRamp,
    PositivePhase,
    ProbeAperture,
    ProbePower,
    ProbeSupport,
    PurePhase,
    SliceCoupling,
    SliceSmoothing,
    Sparsity,
    Tikhonov,
    TotalVariation,
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


@pytest.mark.parametrize("held", [frozenset({"object"}), frozenset({"probe"})])
def test_what_is_not_learned_is_not_touched(held):
    model = noisy()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    everything = Constraints(pure_phase=PurePhase(), phase_ramp=PhaseRamp(), probe_power=ProbePower(electrons=123.0))
    everything.apply(model, 1, held)
    same = {name: bool((p.detach() == b).all()) for (name, p), b in zip(model.named_parameters(), before, strict=True)}
    assert same["object.transmission"] == ("object" in held)
    assert same["probe.wave"] == ("probe" in held)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (PurePhase, {"start": 0}, "start = 0"),
        (PurePhase, {"every": 0}, "every = 0"),
        (Amplitude, {"min": 1.2, "max": 1.1}, "min = 1.2"),
        (SliceSmoothing, {"sigma_A": 0.0}, "sigma_A = 0.0"),
        (ProbePower, {"electrons": -5.0}, "electrons = -5.0"),
        (PositivePhase, {"mean_phase_rad": -0.1}, "mean_phase_rad = -0.1"),
        (SliceCoupling, {"strength": 0.0}, "strength = 0.0"),
        (Absorption, {"ratio": -0.1}, "ratio = -0.1"),
        (LowPass, {"cutoff_invA": 0.0}, "cutoff_invA = 0.0"),
        (LowPass, {"cutoff_invA": 1.0, "edge_invA": 3.0}, "edge_invA = 3.0"),
        (GridFilter, {"contrast": 0.5}, "contrast = 0.5"),
        (TotalVariation, {"xy_rad_per_A": -1.0}, "xy_rad_per_A = -1.0"),
        (TotalVariation, {"xy_rad_per_A": 0.0}, "0 leaves one of the two out"),
        (Tikhonov, {"z_rad_per_A2": -1.0}, "z_rad_per_A2 = -1.0"),
        (Sparsity, {"mean_phase_rad": 0.0}, "mean_phase_rad = 0.0"),
        (ProbeSupport, {"radius_A": 0.0}, "radius_A = 0.0"),
        (ProbeAperture, {"semiangle_mrad": -20.0}, "semiangle_mrad = -20.0"),
        (ProbeAperture, {"semiangle_mrad": 20.0, "flat": 2.0}, "flat = 2.0"),
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
    linear = (SliceSmoothing(), SliceCoupling(), LowPass(cutoff_invA=1.0), TotalVariation(), Tikhonov())
    for constraint in (Amplitude(max=1.0), PositivePhase(), *linear, Absorption(), Sparsity(), PurePhase()):
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


def wave_across(model, cycles, slope):
    """Phase of a plane wave with so many periods on the canvas along y and x."""
    y, x = (torch.arange(n, dtype=torch.float64) / n for n in model.object.transmission.shape[-2:])
    return slope * torch.cos(2 * torch.pi * (cycles[0] * y[:, None] + cycles[1] * x))


def test_a_low_pass_passes_what_is_below_and_removes_what_is_above():
    model = make(scan=(3, 3), slices=2, dtype=torch.float64)
    height, width = (n * model.pixel_A for n in model.object.transmission.shape[-2:])
    low, high = wave_across(model, (2, 3), 0.3), wave_across(model, (9, 4), 0.2)
    assert np.hypot(2 / height, 3 / width) < 0.3 < 0.4 < np.hypot(9 / height, 4 / width)
    model.object.transmission.data = torch.polar(torch.ones_like(low), low + high + 0.1).expand(1, 2, -1, -1).clone()
    LowPass(cutoff_invA=0.35, edge_invA=0.05).apply(model)
    torch.testing.assert_close(model.object.transmission.detach()[0, 1], torch.polar(torch.ones_like(low), low + 0.1))


def test_a_low_pass_does_not_mind_its_own_edge_being_hard():
    model = noisy()
    LowPass(cutoff_invA=0.8, edge_invA=0.0).apply(model)
    once = model.object.transmission.detach().clone()
    LowPass(cutoff_invA=0.8, edge_invA=0.0).apply(model)
    torch.testing.assert_close(model.object.transmission.detach(), once)


def test_absorption_is_in_proportion_to_the_phase():
    model = noisy()
    before = model.object.transmission.detach().clone()
    Absorption(ratio=0.2).apply(model)
    after = model.object.transmission.detach()
    phase = torch.where(after.angle() < -torch.pi / 2, after.angle() + 2 * torch.pi, after.angle())
    torch.testing.assert_close(after.abs(), torch.exp(-0.2 * phase))
    Absorption(ratio=0.2).apply(model)
    torch.testing.assert_close(model.object.transmission.detach(), after)
    # Nothing on the line is nearer to what was found, in ln O.
    other = torch.where(before.angle() < -torch.pi / 2, before.angle() + 2 * torch.pi, before.angle())
    nearest = (before.abs().log() + 0.2 * phase) ** 2 + (other - phase) ** 2
    for step in (-0.01, 0.01):
        assert (nearest <= (before.abs().log() + 0.2 * (phase + step)) ** 2 + (other - phase - step) ** 2).all()


def test_without_a_ratio_nothing_is_absorbed():
    model, pure = noisy(), noisy()
    Absorption(ratio=0.0).apply(model)
    PurePhase().apply(pure)
    torch.testing.assert_close(model.object.transmission.detach(), pure.object.transmission.detach())


def test_probe_support_keeps_the_power_inside():
    model = make(scan=(2, 2), modes=2, dtype=torch.float64)
    before = model.probe.wave.detach().clone()
    r = (torch.arange(model.size) - model.size // 2) * model.pixel_A
    r = torch.hypot(r[:, None], r[None, :])
    ProbeSupport(radius_A=2.0, edge_A=0.8).apply(model)
    after = model.probe.wave.detach()
    torch.testing.assert_close(after[:, r <= 2.0], before[:, r <= 2.0])
    assert after[:, r >= 2.8].abs().max() < 1e-12 * before.abs().max() < before[:, r >= 2.8].abs().max()
    between = (r > 2.0) & (r < 2.8)
    assert (after[:, between].abs() < before[:, between].abs()).all() and (after[:, between] != 0).any()


def aperture_power(model):
    """Power of all modes in reciprocal space and the angle of each frequency in mrad."""
    power = torch.fft.fft2(model.probe.wave.detach(), norm="ortho").abs().square().sum(0)
    return power, 1e3 * model.propagator.wavelength_A * torch.hypot(model.propagator.ky, model.propagator.kx)


def stained():
    """A model whose probe has noise in and beyond its aperture of 25 mrad."""
    model = make(scan=(2, 2), modes=2, dtype=torch.float64)
    noise = torch.randn(model.probe.wave.shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(2))
    model.probe.wave.data += 2 * noise
    return model


def test_nothing_comes_from_beyond_the_aperture():
    model = stained()
    before, angle = aperture_power(model)
    ProbeAperture(semiangle_mrad=25.0, edge_mrad=4.0).apply(model)
    after, _ = aperture_power(model)
    torch.testing.assert_close(after[angle < 27], before[angle < 27])
    assert after[angle > 31].max() < 1e-12 < before[angle > 31].min()


def test_a_flat_aperture_keeps_power_and_phase():
    model = stained()
    ProbeAperture(semiangle_mrad=25.0).apply(model)
    phase = torch.fft.fft2(model.probe.wave.detach()).angle()
    total = model.probe.power().sum()
    half = model.probe.wave.detach().clone()
    ProbeAperture(semiangle_mrad=25.0, flat=1.0).apply(model)
    power, angle = aperture_power(model)
    inside = angle < 22.5
    assert power[inside].std() < 1e-6 * power[inside].mean() and power[angle > 29].max() < 1e-9 * power.max()
    assert model.probe.power().sum().item() == pytest.approx(total.item(), rel=5e-3)  # without the noise in the soft edge
    torch.testing.assert_close(torch.fft.fft2(model.probe.wave.detach()).angle()[:, inside], phase[:, inside])
    model.probe.wave.data = half
    spread = aperture_power(model)[0][inside].std()
    ProbeAperture(semiangle_mrad=25.0, flat=0.5).apply(model)
    assert aperture_power(model)[0][inside].std() < 0.7 * spread


def test_they_act_in_the_order_in_which_they_stand():
    seen = []

    class Watch(PurePhase):
        def apply(self, model):
            seen.append(self)

    first, second = Watch(every=2), Watch()
    Constraints(orthogonal_modes=second, pure_phase=first).apply(noisy(), 1)
    Constraints(orthogonal_modes=second, pure_phase=first).apply(noisy(), 2)
    assert seen == [first, second, second]
