"""Losses as likelihoods of counted electrons: value and slope per pixel.

``intensity`` I is the modelled, ``counts`` D the measured number of electrons in a pixel. ``slope`` is d value / d I, what the adjoint
needs; ``natural_step`` the factor that makes the preconditioned step of one the minimiser of the local quadratic bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LossName = Literal["auto", "amplitude", "anscombe", "poisson", "power"]

#: Mean electrons per pixel below which the amplitude loss biases the phase (knowledge: 1.6 too small at 3 e/px).
POISSON_BELOW = 5.0


@dataclass(frozen=True)
class Loss:
    """One of the losses by name.

    ========== ============================================== =======================
    amplitude  (sqrt I - sqrt D)^2                            Gaussian noise on sqrt D
    anscombe   (sqrt(I + 3/8) - sqrt(D + 3/8))^2              Poisson, variance-stabilised
    poisson    J - E ln J,  J = I + f, E = D + f              Poisson with f extra counts in both
    power      (I^p - D^p)^2 / (4 p^2)                        p = 1/2 is the amplitude loss
    ========== ============================================== =======================

    ``floor`` f (electrons per pixel) keeps the slope of a dark pixel finite. It is added to model and data, so that I = D remains the
    minimum. Formulas: Thibault & Guizar-Sicairos, New J. Phys. 14 (2012) 063004; Anscombe, Biometrika 35 (1948) 246.
    """

    name: LossName = "poisson"
    floor: float = 0.0
    power: float = 0.5

    @property
    def natural_step(self) -> float:
        """1 for the amplitude-like losses; 1/2 for Poisson, which is twice as curved at I = D."""
        return 0.5 if self.name == "poisson" else 1.0

    def value(self, intensity: Tensor, counts: Tensor) -> Tensor:
        """Loss of each pixel, least where I = D; same shape as ``counts``."""
        if self.name == "poisson":
            model = intensity + self.floor
            return torch.addcmul(model, counts + self.floor, torch.log(model), value=-1)
        if self.name == "power":
            return (intensity**self.power - counts.clamp_min(0) ** self.power) ** 2 / (4 * self.power**2)
        offset = self._offset
        return (torch.sqrt(intensity + offset) - torch.sqrt((counts + offset).clamp_min(0))) ** 2

    def least(self, counts: Tensor) -> Tensor:
        """The value at I = D, what a perfect model would reach: zero but for Poisson. Same shape as ``counts``."""
        if self.name != "poisson":
            return torch.zeros_like(counts)
        data = (counts + self.floor).clamp_min(0)
        return data - torch.special.xlogy(data, data)

    def slope(self, intensity: Tensor, counts: Tensor) -> Tensor:
        """d value / d I of each pixel; same shape."""
        if self.name == "poisson":
            return (intensity - counts) / (intensity + self.floor)
        if self.name == "power":
            p = self.power
            return intensity ** (p - 1) * (intensity**p - counts.clamp_min(0) ** p) / (2 * p)
        offset = self._offset
        # The tiny number only matters where model and data are both zero, and there the wave it multiplies is zero as well.
        return 1 - torch.sqrt((counts + offset).clamp_min(0) / (intensity + offset).clamp_min(1e-20))

    def curvature(self, intensity: Tensor, counts: Tensor) -> Tensor:
        """d^2 value / d I^2 of each pixel; same shape. With the model's own ``intensity`` for ``counts`` it is positive: Gauss-Newton."""
        if self.name == "poisson":
            return (counts + self.floor) / (intensity + self.floor).clamp_min(1e-20).square()
        if self.name == "power":
            p, model = self.power, intensity.clamp_min(1e-20)
            return ((2 * p - 1) * model ** (2 * p - 2) - (p - 1) * model ** (p - 2) * counts.clamp_min(0) ** p) / (2 * p)
        model = (intensity + self._offset).clamp_min(1e-20)
        return 0.5 * torch.sqrt((counts + self._offset).clamp_min(0)) * model**-1.5

    @property
    def _offset(self) -> float:
        return 0.375 if self.name == "anscombe" else self.floor


def choose_loss(name: LossName, mean_electrons_per_pixel: float) -> LossName:
    """The loss to use: ``auto`` is Poisson below about 5 electrons per pixel, amplitude above."""
    if name != "auto":
        return name
    return "poisson" if mean_electrons_per_pixel < POISSON_BELOW else "amplitude"
