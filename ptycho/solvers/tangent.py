"""Directions of the object that the constraints of a solver leave free."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ptycho.constraint import Constraints, normalise


@dataclass(frozen=True)
class Tangent:
    """How the object may move: on |O| = 1 if ``pure_phase``, under the prior exp(-phase / ``mean_phase_rad``) if that is not zero."""

    pure_phase: bool
    mean_phase_rad: float

    @classmethod
    def of(cls, constraints: Constraints) -> Tangent:
        """What these constraints ask for; those that act between epochs only are not in it."""
        positive = constraints.positive_phase
        return cls(constraints.pure_phase is not None, 0.0 if positive is None else positive.mean_phase_rad)

    def add_prior(self, gradient: Tensor, transmission: Tensor, share: float = 1.0) -> Tensor:
        """``gradient`` of the loss (torch's convention) plus ``share`` of that of sum phase / mean phase, in place."""
        return gradient if self.mean_phase_rad == 0 else gradient.add_(transmission, alpha=1j * share / self.mean_phase_rad)

    def project(self, direction: Tensor, transmission: Tensor) -> Tensor:
        """``direction``, in place; of a pure phase object the part i O dphi with real dphi."""
        if self.pure_phase:
            turn = transmission.real * direction.imag - transmission.imag * direction.real
            torch.mul(transmission, torch.complex(torch.zeros_like(turn), turn), out=direction)
        return direction

    def retract(self, transmission: Tensor) -> None:
        """Back to |O| = 1 after a step, in place: to second order the step's phase."""
        if self.pure_phase:
            normalise(transmission)
