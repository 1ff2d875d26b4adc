"""Laws of the losses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ptycho.loss import POISSON_BELOW, Loss, choose_loss

LOSSES = [
    Loss("amplitude"), Loss("amplitude", floor=0.2), Loss("anscombe"),
    Loss("poisson"), Loss("poisson", floor=0.1), Loss("power", power=0.5), Loss("power", power=0.3), Loss("power", power=1.0),
]  # fmt: skip
COUNTS = torch.tensor([0.3, 1.0, 2.5, 7.0, 40.0, 1000.0], dtype=torch.float64)

each_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda x: f"{x.name} floor {x.floor} power {x.power}")


def curvature(loss: Loss, intensity: Tensor) -> Tensor:
    """d2 value / dI2 at I = D."""
    at = intensity.clone().requires_grad_()
    return torch.autograd.grad(loss.slope(at, intensity).sum(), at)[0]


@each_loss
def test_slope_is_the_derivative(loss: Loss) -> None:
    intensity = torch.logspace(-2, 3, 20, dtype=torch.float64)[:, None].expand(20, len(COUNTS)).clone().requires_grad_()
    (derivative,) = torch.autograd.grad(loss.value(intensity, COUNTS).sum(), intensity)
    torch.testing.assert_close(loss.slope(intensity, COUNTS).detach(), derivative, rtol=1e-10, atol=1e-12)


@each_loss
def test_slope_is_the_derivative_where_nothing_was_counted(loss: Loss) -> None:
    intensity = torch.logspace(-2, 3, 20, dtype=torch.float64).requires_grad_()
    counts = torch.zeros(20, dtype=torch.float64)
    (derivative,) = torch.autograd.grad(loss.value(intensity, counts).sum(), intensity)
    torch.testing.assert_close(loss.slope(intensity, counts).detach(), derivative, rtol=1e-10, atol=1e-12)


@each_loss
def test_the_minimum_is_where_model_equals_data(loss: Loss) -> None:
    torch.testing.assert_close(loss.slope(COUNTS, COUNTS), torch.zeros_like(COUNTS), rtol=0, atol=1e-12)
    for factor in (0.3, 0.9, 0.999, 1.001, 1.1, 4.0):
        assert (loss.value(COUNTS * factor, COUNTS) > loss.least(COUNTS)).all()
        assert (torch.sign(loss.slope(COUNTS * factor, COUNTS)) == (1 if factor > 1 else -1)).all()


@each_loss
def test_least_is_the_value_there(loss: Loss) -> None:
    torch.testing.assert_close(loss.least(COUNTS), loss.value(COUNTS, COUNTS), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", [Loss("poisson", floor=0.1), Loss("amplitude"), Loss("anscombe")], ids=lambda x: x.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_dark_pixel_is_finite(loss: Loss, dtype: torch.dtype) -> None:
    dark, counts = torch.zeros(4, dtype=dtype), torch.tensor([-0.8, 0.0, 1.0, 500.0], dtype=dtype)
    for result in (loss.value(dark, counts), loss.slope(dark, counts), loss.least(counts)):
        assert torch.isfinite(result).all()


def test_poisson_with_a_floor_at_nothing_is_its_least() -> None:
    loss, zero = Loss("poisson", floor=0.1), torch.zeros(1, dtype=torch.float64)
    torch.testing.assert_close(loss.value(zero, zero), loss.least(zero))
    assert loss.slope(zero, zero).item() == 0


def test_power_one_half_is_the_amplitude_loss() -> None:
    intensity = COUNTS * 1.7
    torch.testing.assert_close(Loss("power", power=0.5).value(intensity, COUNTS), Loss("amplitude").value(intensity, COUNTS))


def test_poisson_is_the_negative_log_likelihood() -> None:
    """Up to what does not depend on the model."""
    counts = COUNTS.round().clamp_min(1)
    likelihood = torch.distributions.Poisson(counts * 1.3).log_prob(counts) - torch.distributions.Poisson(counts * 0.6).log_prob(counts)
    loss = Loss("poisson")
    torch.testing.assert_close(loss.value(counts * 0.6, counts) - loss.value(counts * 1.3, counts), likelihood)


@pytest.mark.parametrize("loss", [Loss("poisson"), Loss("power", power=0.5)], ids=lambda x: x.name)
def test_the_natural_step_evens_out_the_curvature(loss: Loss) -> None:
    amplitude = Loss("amplitude")
    torch.testing.assert_close(curvature(loss, COUNTS) * loss.natural_step, curvature(amplitude, COUNTS) * amplitude.natural_step)


def test_auto_is_poisson_for_few_electrons() -> None:
    assert choose_loss("auto", POISSON_BELOW * 0.9) == "poisson"
    assert choose_loss("auto", POISSON_BELOW * 1.1) == "amplitude"
    assert choose_loss("anscombe", 1.0) == "anscombe"
