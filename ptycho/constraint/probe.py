"""Constraints of the probe: its extent in both spaces, its power, its modes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ptycho.constraint.base import Constraint
from ptycho.errors import RecipeError
from ptycho.model import Ptychography
from ptycho.optics import aperture
from ptycho.probe import orthogonalise


@dataclass(frozen=True, kw_only=True)
class ProbeSupport(Constraint):
    """The probe is dark beyond ``radius_A`` from the window's centre; its intensity fades over ``edge_A`` outside of it."""

    acts_on = frozenset({"probe"})

    radius_A: float
    edge_A: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.radius_A > 0 or not self.edge_A >= 0:
            raise RecipeError(f"probe_support radius_A = {self.radius_A}, edge_A = {self.edge_A}: a positive radius and an edge in Å are needed")

    def apply(self, model: Ptychography) -> None:
        """Multiply all modes by the support; inside nothing changes."""
        wave = model.probe.wave
        axis = (torch.arange(model.size, dtype=wave.real.dtype, device=wave.device) - model.size // 2) * model.pixel_A
        support = aperture(axis[:, None], axis[None, :], self.radius_A + 0.5 * self.edge_A, self.edge_A)
        model.probe.change(lambda wave: wave * support)


@dataclass(frozen=True, kw_only=True)
class ProbeAperture(Constraint):
    """No electrons beyond the aperture of ``semiangle_mrad``, and with ``flat`` > 0 equally many everywhere inside of it.

    ``edge_mrad`` is the width of the aperture's soft edge (0: one pixel of reciprocal space). ``flat`` 1 sets the intensity of all modes together to
    that of an evenly lit aperture, which keeps the phase of each and the total power; less goes that share of the way each time. A flat
    aperture fixes the probe's tilt as well: leave ``phase_ramp`` out with it.
    """

    acts_on = frozenset({"probe"})

    semiangle_mrad: float
    edge_mrad: float = 0.0
    flat: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.semiangle_mrad > 0 or not self.edge_mrad >= 0:
            given = f"probe_aperture semiangle_mrad = {self.semiangle_mrad}, edge_mrad = {self.edge_mrad}"
            raise RecipeError(f"{given}: a positive angle and an edge in mrad are needed")
        if not 0 <= self.flat <= 1:
            raise RecipeError(f"probe_aperture flat = {self.flat}: between 0 (only the outside is dark) and 1 (evenly lit) is needed")

    def apply(self, model: Ptychography) -> None:
        """Shape the modulus of the spectrum, which no aberration changes."""
        propagator = model.propagator
        per_mrad = 1e-3 / propagator.wavelength_A
        edge = self.edge_mrad * per_mrad or 1 / (model.size * model.pixel_A)
        ky, kx, radius = propagator.ky, propagator.kx, self.semiangle_mrad * per_mrad
        # It begins where the aperture's own edge ends, or that edge would fall off more steeply each time.
        passed = aperture(ky, kx, radius + edge, edge)
        if self.flat > 0:
            power = model.probe.mode_spectrum().mul_(passed).abs().square().sum(0)
            wanted = aperture(ky, kx, radius, edge).square()
            wanted *= power.sum() / wanted.sum()
            passed *= 1 - self.flat + self.flat * torch.sqrt(wanted / power.clamp_min(1e-12 * power.max()))
        model.probe.change(lambda wave: torch.fft.ifft2(torch.fft.fft2(wave) * passed))


@dataclass(frozen=True)
class ProbePower(Constraint):
    """Keeps the probe's total power at ``electrons`` per pattern (0: what it was at the start), so that it does not trade with the object."""

    acts_on = frozenset({"probe"})

    electrons: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.electrons < 0:
            raise RecipeError(f"probe_power electrons = {self.electrons}: a positive number, or 0 for that of the start, is needed")

    def apply(self, model: Ptychography) -> None:
        """Scale all modes by one factor."""
        wanted = self.electrons or model.initial_power
        scale = torch.sqrt(wanted / model.probe.power().sum())
        model.probe.wave.data.mul_(scale)
        model.probe.coefficients.data.mul_(scale)


@dataclass(frozen=True)
class OrthogonalModes(Constraint):
    """Probe modes orthogonal and sorted by power; the intensity does not change. A first mode that varies with the position stays as it is."""

    acts_on = frozenset({"probe"})

    def apply(self, model: Ptychography) -> None:
        """Rotate the modes onto the eigenvectors of their Gram matrix."""
        wave = model.probe.wave.data[1 if model.probe.varies else 0 :]
        if len(wave) > 1:
            turned = orthogonalise(wave)
            # Eigenvectors have any phase: the one that turns the modes least keeps momenta meaningful.
            overlap = (turned.conj() * wave).sum((-2, -1), keepdim=True).angle()
            wave.copy_(turned * torch.polar(torch.ones_like(overlap), overlap))
