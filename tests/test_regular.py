"""Priors: each step lessens its objective, means the same on every grid and fades as the dose rises."""

import math

import pytest
import torch
from small import PIXEL_A, correlation, counts_of, empty, flat, make, scanned, solve, summed_phase

from ptycho.constraint import Constraints, PositivePhase, PurePhase, Sparsity, Tikhonov, TotalVariation
from ptycho.constraint.prior import least_variation
from ptycho.solvers.base import Updates
from ptycho.solvers.gradient import Gradient

ALL = [TotalVariation(xy_rad_per_A=0.1, z_rad_per_A2=1e-3), Tikhonov(xy_rad_per_A=0.1, z_rad_per_A2=1e-3), Sparsity(mean_phase_rad=0.02)]


def noise(shape, seed=1):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def evenly_lit(phase, dose, thickness_A=20.0, pixel_A=PIXEL_A):
    """A model whose light is ``dose`` electrons per Å^2 everywhere, with ``phase`` (states, slices, y, x) for its object."""
    model = make(scan=(2, 2), size=8, slices=phase.shape[1], thickness_A=thickness_A, dtype=torch.float64)
    model.object.transmission = torch.nn.Parameter(torch.polar(torch.ones_like(phase), phase))
    model.pixel_A = pixel_A
    model.illumination = lambda: torch.full(phase.shape[-2:], dose * pixel_A**2, dtype=torch.float64)
    return model


def phase_after(constraint, phase, dose, **options):
    model = evenly_lit(phase, dose, **options)
    constraint.apply(model)
    return model.object.transmission.detach().angle()


@pytest.mark.parametrize("prior", ALL, ids=lambda p: type(p).__name__)
def test_constants_stay(prior):
    phase = torch.full((1, 3, 16, 17), 0.4, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)[:, None, None]
    found = phase_after(prior, phase, 100.0, thickness_A=(10.0, 20.0, 5.0))
    torch.testing.assert_close(found, phase, rtol=1e-9, atol=1e-12)


def test_amplitude_and_phase_share_their_edges():
    model = evenly_lit(0.1 * noise((1, 1, 24, 24)), 1e3)
    model.object.transmission.data *= torch.exp(0.1 * noise((1, 1, 24, 24), 2))
    TotalVariation(xy_rad_per_A=0.02).apply(model)
    found = model.object.transmission.detach().log()
    assert 0.005 < found.real.std() < 0.05 and 0.005 < found.imag.std() < 0.05


@pytest.mark.parametrize(("axes", "shape"), [((-2, -1), (2, 3, 20, 21)), ((-3,), (2, 9, 6, 7)), ((-3, -2, -1), (1, 5, 8, 9))])
def test_total_variation_reaches_the_minimum(axes, shape):
    found = noise(shape)
    weight = 0.2 + noise((shape[0], 1, *shape[2:]), 3).abs()

    def objective(u):
        steps = [torch.diff(u, dim=axis, append=u.narrow(axis, -1, 1)) for axis in axes]
        return (weight * (u - found) ** 2).sum() + 0.7 * torch.sqrt(sum(s**2 for s in steps)).sum()

    best = least_variation(found[None], weight, 0.7, axes)[0]
    assert objective(best) < 0.75 * objective(found)
    gaps = [objective(best + 0.02 * noise(shape, seed)) - objective(best) for seed in range(5, 15)]
    gaps += [objective(best + s * (found - best)) - objective(best) for s in (0.02, 0.1)]
    gaps += [objective(best + s * (found.mean() - best)) - objective(best) for s in (0.02, 0.1)]
    assert min(gaps) > 0


def test_total_variation_keeps_an_edge_and_removes_noise():
    truth = torch.zeros(1, 1, 40, 40, dtype=torch.float64)
    truth[..., 12:28, 12:28] = 0.5
    found = phase_after(TotalVariation(xy_rad_per_A=0.02), truth + 0.05 * noise(truth.shape), 2e3)
    assert (found - truth).std() < 0.4 * 0.05
    assert (found[..., 20, 12] - found[..., 20, 11]).item() > 0.4


def test_tikhonov_is_the_minimum_of_its_objective():
    sigma, dose, phase = 0.1, 500.0, 0.2 * noise((1, 1, 16, 16))
    found = phase_after(Tikhonov(xy_rad_per_A=sigma), phase, dose)
    k = [2 * math.pi * torch.fft.fftfreq(16, PIXEL_A, dtype=torch.float64) for _ in range(2)]

    def objective(u):
        spectrum = torch.fft.fft2(u, norm="ortho")
        slope = ((k[0][:, None] ** 2 + k[1] ** 2) * spectrum.abs() ** 2).sum()
        return PIXEL_A**2 * (dose * ((u - phase) ** 2).sum() + slope / (2 * sigma**2))

    u = found.clone().requires_grad_()
    objective(u).backward()
    assert u.grad.abs().max() < 1e-9 * objective(phase)
    assert objective(found) < objective(phase)


def test_tikhonov_along_the_beam_is_the_minimum_of_its_objective():
    sigma, dose, thickness = 2e-3, 500.0, torch.tensor([5.0, 9.0, 3.0, 12.0], dtype=torch.float64)
    phase = 0.2 * noise((1, 4, 5, 6))
    found = phase_after(Tikhonov(xy_rad_per_A=0.0, z_rad_per_A2=sigma), phase, dose, thickness_A=tuple(thickness.tolist()))
    u = found.clone().requires_grad_()
    density = u / thickness[:, None, None]
    distance = (thickness[1:] + thickness[:-1])[:, None, None] / 2
    (dose * ((u - phase) ** 2).sum() + (density.diff(dim=1) ** 2 / distance).sum() / (2 * sigma**2)).backward()
    assert u.grad.abs().max() < 1e-8 * dose
    assert (found / thickness[:, None, None]).diff(dim=1).abs().mean() < 0.5 * (phase / thickness[:, None, None]).diff(dim=1).abs().mean()


@pytest.mark.parametrize("kind", [TotalVariation, Tikhonov])
def test_slopes_along_the_beam_leave_the_sum(kind):
    phase = 0.2 * noise((1, 4, 5, 6))
    found = phase_after(kind(xy_rad_per_A=0.0, z_rad_per_A2=1e-3), phase, 100.0)
    torch.testing.assert_close(found.sum(1), phase.sum(1))
    assert found.diff(dim=1).abs().mean() < 0.5 * phase.diff(dim=1).abs().mean()


def test_sparsity_is_a_soft_threshold_about_the_vacuum():
    phase = torch.full((1, 2, 20, 20), -0.3, dtype=torch.float64)
    phase[..., 5:8, 5:8], phase[..., 12, 12] = 0.5, -0.29
    found = phase_after(Sparsity(mean_phase_rad=0.1), phase, 100.0)
    threshold = 1 / (2 * 100.0 * 0.1)
    assert found[0, 0, 6, 6].item() == pytest.approx(0.5 - threshold) and found[0, 0, 12, 12].item() == pytest.approx(-0.3)
    assert found[0, 1, 0, 0].item() == pytest.approx(-0.3)


def field(pixel_A, slices=1):
    """One phase field of 24 Å on any grid, periodic."""
    n = round(24 / pixel_A)
    y, x = (torch.arange(n, dtype=torch.float64) * (2 * math.pi * pixel_A / 24) for _ in range(2))
    phase = 0.3 * torch.cos(3 * y)[:, None] * torch.sin(2 * x + 0.4) + 0.2 * torch.sin(5 * y)[:, None] * torch.ones(n) + 0.1 * torch.cos(4 * x)
    return phase[None, None].expand(1, slices, n, n) / slices


#: With what differs between grids at each pixel: total variation clips crests, and the finer the grid the sharper the crest.
STRONG = [(TotalVariation(xy_rad_per_A=0.2), 0.3), (Tikhonov(xy_rad_per_A=0.02), 1e-9), (Sparsity(mean_phase_rad=0.02), 0.03)]


@pytest.mark.parametrize(("prior", "tolerance"), STRONG, ids=lambda p: type(p).__name__)
def test_pixels_do_not_count(prior, tolerance):
    fine, coarse = (phase_after(prior, field(pixel), 200.0, pixel_A=pixel) - field(pixel) for pixel in (0.25, 0.5))
    assert coarse.norm() > 0.05 * field(0.5).norm()
    assert (0.25 * fine.norm()).item() == pytest.approx((0.5 * coarse.norm()).item(), rel=0.25 * tolerance + 1e-9)
    assert (fine[..., ::2, ::2] - coarse).norm() < tolerance * coarse.norm() + 1e-9


@pytest.mark.parametrize(("prior", "tolerance"), STRONG[:2], ids=lambda p: type(p).__name__)
def test_slices_do_not_count(prior, tolerance):
    # Slices carry a share of the phase and each its own evidence: S slices with the light of 1/S each are one slice with all of it.
    one = phase_after(prior, field(0.5), 200.0, thickness_A=60.0, pixel_A=0.5)
    three = phase_after(prior, field(0.5, 3), 600.0, thickness_A=20.0, pixel_A=0.5)
    assert (three.sum(1) - one[:, 0]).norm() < 0.05 * (one - field(0.5)).norm()


@pytest.mark.parametrize("prior", ALL, ids=lambda p: type(p).__name__)
def test_twice_the_dose_halves_the_effect(prior):
    phase = 0.01 * torch.stack([field(0.5)[0, 0] * s for s in (1.0, 2.0, 1.5)])[None] if isinstance(prior, Tikhonov) else 5 * field(0.5, 3)
    few, many = (phase_after(prior, phase, dose, pixel_A=0.5) - phase for dose in (1e5, 2e5))
    assert few.norm() > 0
    assert (few - 2 * many).norm() < 0.05 * few.norm()


@pytest.mark.parametrize("name", ["total_variation", "tikhonov", "sparsity"])
@pytest.mark.parametrize("epochs", [1, 4])
def test_a_solver_at_rest_stays_where_the_prior_puts_it(name, epochs):
    # Data that draw a solver all the way back each epoch: the result is the same after any number of them.
    prior = {"total_variation": TotalVariation(), "tikhonov": Tikhonov(), "sparsity": Sparsity()}[name]
    phase, once = 0.1 * noise((1, 1, 20, 20)), None
    for epoch in range(1, epochs + 1):
        model = evenly_lit(phase, 1e3)
        Constraints(**{name: prior}).apply(model, epoch)
        again = model.object.transmission.detach().clone()
        assert once is None or torch.equal(once, again)
        once = again


def low_dose(electrons, **prior):
    """Correlation of the summed phase with the truth."""
    truth = make(scan=(14, 14), step_px=2.0, size=24, strength=0.8, electrons=electrons, seed=4)
    counts = torch.poisson(counts_of(truth), generator=torch.Generator().manual_seed(7))
    model = empty(truth)
    solve(Gradient(epochs=12, loss="poisson", update=Updates(probe=0), constraints=Constraints(pure_phase=PurePhase(), **prior)), model, counts)
    return correlation(summed_phase(model, truth), summed_phase(truth))


@pytest.mark.parametrize("electrons", [150.0, 600.0])  # per pattern: 420 and 1700 per Å^2
def test_priors_help_at_low_dose(electrons):
    plain = low_dose(electrons)
    # One strength for both doses: it is the specimen's, not the data's.
    for prior in ({"total_variation": TotalVariation()}, {"tikhonov": Tikhonov()}):
        assert low_dose(electrons, **prior) > plain + 0.3 * (1 - plain)


def test_slopes_along_the_beam_help_the_slices_at_low_dose():
    """A column that changes once in depth, at 8000 electrons per Å^2; the strength is about what it changes by, over the depth it does so in."""
    truth = make(scan=(10, 10), step_px=2.0, slices=6, strength=1.0, electrons=3000.0, seed=4)
    phase = truth.object.transmission.data.angle()[:, [0, 0, 0, 1, 1, 1]]
    truth.object.transmission.data = torch.polar(torch.ones_like(phase), phase)
    counts = torch.poisson(counts_of(truth), generator=torch.Generator().manual_seed(7))
    rows, columns = scanned(truth)
    found = []
    for prior in ({}, {"total_variation": TotalVariation(xy_rad_per_A=0.0, z_rad_per_A2=1e-3)}):
        model = empty(truth)
        constraints = Constraints(pure_phase=PurePhase(), positive_phase=PositivePhase(), **prior)
        solve(Gradient(epochs=12, loss="poisson", update=Updates(probe=0), constraints=constraints), model, counts)
        each = model.object.transmission.detach().angle()[0, :, rows, columns]
        found.append(sum(correlation(flat(a.numpy()), flat(b.numpy())) for a, b in zip(each, phase[0, :, rows, columns], strict=True)) / 6)
    assert found[1] > found[0] + 0.03, found
