"""Directions of the object that the constraints of a solver leave free."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ptycho.constraint import Constraints, normalise


@dataclass(frozen=True)
class Tangent:
    """How the object may move.

    On |O| = 1 if ``pure_phase``, not below the phase 0 if ``positive_phase``, under the prior exp(-phase / ``mean_phase_rad``) if that is
    not zero.
    """

    pure_phase: bool
    positive_phase: bool
    mean_phase_rad: float

    @classmethod
    def of(cls, constraints: Constraints) -> Tangent:
        """What these constraints ask for; those that act between epochs only are not in it."""
        positive = constraints.positive_phase
        return cls(constraints.pure_phase is not None, positive is not None, 0.0 if positive is None else positive.mean_phase_rad)

    def add_prior(self, gradient: Tensor, transmission: Tensor, share: float = 1.0) -> Tensor:
        """``gradient`` of the loss (torch's convention) plus ``share`` of that of sum phase / mean phase, in place."""
        return gradient if self.mean_phase_rad == 0 else gradient.add_(transmission, alpha=1j * share / self.mean_phase_rad)

    def project(self, direction: Tensor, transmission: Tensor) -> Tensor:
        """``direction``, in place; of a pure phase object the part i O dphi with real dphi."""
        if self.pure_phase:
            torch.mul(transmission, _turn(direction, transmission), out=direction)
        return direction

    def inwards(self, direction: Tensor, transmission: Tensor, light: Tensor) -> Tensor:
        """:meth:`project`, and nothing that the constraints or the next pass would take back; in place.

        Without the phase by which a slice turns as a whole, weighted by ``light`` (y, x), which no detector sees; of a positive phase
        without the pixels at 0 that it would lower (an active set; Bertsekas, SIAM J. Control Optim. 20 (1982) 221).
        """
        turn = _turn(self.project(direction, transmission), transmission)
        direction.sub_(transmission * (turn * (light / light.sum())).sum((-2, -1), keepdim=True))
        if self.positive_phase:
            # Beyond -pi/2 it is a phase of more than pi, wrapped.
            above = (transmission.imag > 0) | (transmission.real < 0)
            direction.mul_(above | (_turn(direction, transmission).imag >= 0))
        return direction

    def retract(self, transmission: Tensor) -> None:
        """Back to |O| = 1 after a step, in place: to second order the step's phase."""
        if self.pure_phase:
            normalise(transmission)


def _turn(direction: Tensor, transmission: Tensor) -> Tensor:
    """i Im(conj(O) dO), which for |O| = 1 is i times the change of phase."""
    turn = transmission.real * direction.imag - transmission.imag * direction.real
    return torch.complex(torch.zeros_like(turn), turn)
