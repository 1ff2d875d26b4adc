"""Laws of a source of finite size: the modes are those of an average over shifted probes, and its size comes back from the data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small import PIXEL_A, counts_of, empty, make, solve
from torch import Tensor

from ptycho.model import Ptychography
from ptycho.optics import shift_ramps
from ptycho.probe import Probe
from ptycho.solvers.base import Updates
from ptycho.solvers.gradient import Gradient
from ptycho.source import source_factors, source_modes, source_order

RADIUS = 0.6


def visibility_error(sigma: float, order: int) -> float:
    """Relative rms error of exp(-2 pi^2 sigma^2 |k - k'|^2) over the pairs of frequencies of a disk."""
    axis = torch.linspace(-RADIUS, RADIUS, 13, dtype=torch.float64)
    factors = source_factors(axis, torch.tensor([sigma**2], dtype=torch.float64), RADIUS / 2, order)
    disk = torch.hypot(axis[:, None], axis) <= RADIUS
    ky, kx = (g[disk] for g in torch.meshgrid(axis, axis, indexing="ij"))
    exact = torch.exp(-2 * math.pi**2 * sigma**2 * ((ky[:, None] - ky) ** 2 + (kx[:, None] - kx) ** 2))
    modes = factors[:, disk]
    return float(torch.linalg.norm(modes.T @ modes - exact) / torch.linalg.norm(exact))


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.2, 0.3, 0.4])
def test_the_modes_hold_the_visibility_of_the_source(sigma: float) -> None:
    order = source_order(sigma, RADIUS)
    assert visibility_error(sigma, order) < 0.02
    assert visibility_error(sigma, order + 2) < 0.2 * visibility_error(sigma, order)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_no_electron_is_lost(order: int) -> None:
    axis = torch.linspace(-1, 1, 9, dtype=torch.float64)
    factors = source_factors(axis, torch.tensor([0.1], dtype=torch.float64), 0.3, order)
    assert len(factors) == source_modes(order)
    torch.testing.assert_close(factors.square().sum(0), torch.ones(9, 9, dtype=torch.float64))


def averaged(model: Ptychography, sigma_px: float) -> Tensor:
    """Patterns of a point source, averaged over shifts of the probe by a fine quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    start, total = torch.fft.fft2(model.probe.wave.detach()), torch.zeros(())
    for y, wy in zip(nodes, weights / weights.sum(), strict=True):
        for x, wx in zip(nodes, weights / weights.sum(), strict=True):
            ramp_y, ramp_x = shift_ramps(sigma_px * torch.tensor([[y, x]], dtype=torch.float64), model.size)
            model.probe.wave.data = torch.fft.ifft2(start * ramp_y * ramp_x)
            total = total + wy * wx * counts_of(model)
    return total


@pytest.mark.parametrize(("order", "most"), [(3, 0.02), (6, 1e-3)])
def test_patterns_are_those_of_an_average_over_the_source(order: int, most: float) -> None:
    """The error as a share of what the source does to the patterns."""
    sharp, blurred = (make((3, 3), slices=2, modes=2, strength=1.5, dtype=torch.float64, source_A=size) for size in (0.0, 0.3))
    assert blurred.probe.source_order == 3
    blurred.probe.source_order = order
    wanted, before = averaged(make((3, 3), slices=2, modes=2, strength=1.5, dtype=torch.float64), 0.3 / PIXEL_A), counts_of(sharp)
    assert torch.linalg.norm(counts_of(blurred) - wanted) < most * torch.linalg.norm(before - wanted)


def test_a_point_source_is_the_model_without_one() -> None:
    point = make(scan=(2, 2))
    assert point.probe.spectrum().shape == point.probe.wave.shape
    assert torch.equal(point.probe.spectrum(), point.probe.mode_spectrum())


def test_pull_back_and_slope_are_those_of_autograd() -> None:
    wave = torch.randn(2, 16, 16, dtype=torch.complex128, generator=torch.Generator().manual_seed(1))
    probe = Probe(wave, 0.3, 0.04, source_A=0.2)
    spectrum = probe.spectrum()
    gradient = torch.randn(spectrum.shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(2))
    by_wave, by_variance = torch.autograd.grad(spectrum, (probe.wave, probe.source_A2), gradient)
    with torch.no_grad():
        torch.testing.assert_close(probe.pull_back(gradient), by_wave, rtol=0, atol=1e-12)
        torch.testing.assert_close(probe.source_slope(gradient), by_variance, rtol=1e-10, atol=0)


@pytest.mark.parametrize(("optimizer", "known"), [("nesterov", True), ("nesterov", False), ("Adam", True)])
def test_the_size_of_the_source_comes_back(optimizer: str, known: bool) -> None:
    truth = make(scan=(8, 8), step_px=2.0, strength=1.0, defocus_A=60.0, source_A=0.4)
    model = make(scan=(8, 8), step_px=2.0, strength=1.0, defocus_A=60.0)
    model = model if known else empty(model)
    update = Updates(object=0 if known else 1, probe=0, source=1 if known else 3)
    solver = Gradient(loss="amplitude", optimizer=optimizer, epochs=12 if known else 40, batch=16, update=update)
    solve(solver, model, counts_of(truth))
    assert model.probe.source_A == pytest.approx(0.4, rel=0.03 if known else 0.1)
