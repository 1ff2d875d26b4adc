"""What is known of object and probe beforehand, imposed between epochs.

Each constraint is a frozen record of numbers with one method; the records are also the recipe's ``constraints`` entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ptycho.errors import RecipeError
from ptycho.model import Ptychography
from ptycho.probe import orthogonalise


@dataclass(frozen=True)
class Constraint:
    """Imposed after epoch ``start``, ``start + every``, ... up to ``stop`` (0: to the end)."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "allow_inf_nan": False}  # for recipe.py

    start: int = 1
    stop: int = 0
    every: int = 1

    def __post_init__(self) -> None:
        if self.start < 1 or self.every < 1 or self.stop < 0:
            raise RecipeError(f"start = {self.start}, every = {self.every}, stop = {self.stop}: start and every count from 1, stop is 0 for no end")

    def due(self, epoch: int) -> bool:
        """Whether it acts after this epoch (counted from 1)."""
        return epoch >= self.start and (self.stop == 0 or epoch <= self.stop) and (epoch - self.start) % self.every == 0

    def apply(self, model: Ptychography) -> None:
        """Impose it on the model, in place."""
        raise AssertionError("a constraint says what it does")


@dataclass(frozen=True)
class PositivePhase(Constraint):
    """Phase >= 0 in every slice: atoms only add to the projected potential.

    ``mean_phase_rad`` m is what a pixel is expected to hold: a prior exp(-phase / m), one count of evidence against dose; it fades as
    the dose rises, and 0 leaves it out. The zero of the phase is free (a constant phase is not seen by any detector): with the prior it
    is put where clipping noise costs as much as the prior gains, so that a specimen without vacuum keeps its contrast.
    """

    mean_phase_rad: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.mean_phase_rad >= 0:
            raise RecipeError(f"positive_phase mean_phase_rad = {self.mean_phase_rad}: a phase in rad, or 0 for no prior, is needed")

    def apply(self, model: Ptychography) -> None:
        """Negative phases become zero, the amplitude stays."""
        transmission = model.object.transmission.data
        if self.mean_phase_rad > 0:
            light = model.illumination()
            scanned = light > 0.5 * light.max()
            # Clipping costs (zero - phase)^2 light / 2 in log-likelihood per pixel, the prior gains zero / m: equal slopes.
            allowed = 1 / (light[scanned].mean() * self.mean_phase_rad)
            for slice_ in transmission.flatten(0, 1):
                zero = _zero_level(_unwrapped(slice_[scanned]), allowed).clamp(max=0)
                slice_.mul_(torch.complex(torch.cos(zero), -torch.sin(zero)))
        # Beyond -pi/2 it is no noise about zero but a phase of more than pi, wrapped.
        negative = (transmission.imag < 0) & (transmission.real > 0)
        transmission.copy_(torch.where(negative, _as_complex(transmission.abs()), transmission))


@dataclass(frozen=True)
class PurePhase(Constraint):
    """|O| = 1: electrons scatter elastically and none are lost, which halves the unknowns."""

    def apply(self, model: Ptychography) -> None:
        """Every pixel of the object is divided by its modulus."""
        normalise(model.object.transmission.data)


@dataclass(frozen=True)
class Amplitude(Constraint):
    """Keeps the object's amplitude between ``min`` and ``max``."""

    min: float = 0.0
    max: float = 1.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.min <= self.max:
            raise RecipeError(f"amplitude min = {self.min}, max = {self.max}: 0 <= min <= max is needed")

    def apply(self, model: Ptychography) -> None:
        """Clamp the modulus, keep the phase."""
        transmission = model.object.transmission.data
        modulus = transmission.abs().clamp_min_(1e-12)
        transmission.mul_(modulus.clamp(self.min, self.max) / modulus)


@dataclass(frozen=True)
class SliceSmoothing(Constraint):
    """A Gaussian of standard deviation ``sigma_A`` along the beam; nothing passes the surfaces, so that top and bottom do not mix."""

    sigma_A: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sigma_A > 0:
            raise RecipeError(f"slice_smoothing sigma_A = {self.sigma_A}: a positive length in Å is needed")

    def apply(self, model: Ptychography) -> None:
        """Scattering per Å diffuses along the beam, slices of unequal thickness included."""
        transmission = model.object.transmission.data
        thickness = model.propagator.thickness_A.detach()
        # The phase of a slice is its density times its thickness. Opaque pixels would have an infinite one.
        logarithm = torch.complex(torch.log(transmission.abs().clamp_min(1e-6)), transmission.angle())
        density = logarithm / thickness[:, None, None]
        weight = diffusion(thickness, self.sigma_A).to(density.dtype)
        smooth = torch.einsum("zs,osyx->ozyx", weight, density)
        transmission.copy_(torch.exp(smooth * thickness[:, None, None]))


def diffusion(thickness: Tensor, sigma: float) -> Tensor:
    """(slices, slices): what diffusion makes of the densities of slices between closed ends, a Gaussian of ``sigma`` far from them.

    exp(sigma^2 / 2 times the Laplacian in finite volumes) keeps constant densities and the sum over density times thickness exactly.
    """
    thickness = thickness.double()
    between = 2 / (thickness[1:] + thickness[:-1])
    coupling = torch.diag(between, 1) + torch.diag(between, -1)
    laplacian = (coupling - torch.diag(coupling.sum(1))) / thickness[:, None]
    return torch.linalg.matrix_exp(0.5 * sigma**2 * laplacian)


@dataclass(frozen=True)
class OrthogonalModes(Constraint):
    """Probe modes orthogonal and sorted by power; the intensity does not change."""

    def apply(self, model: Ptychography) -> None:
        """Rotate the modes onto the eigenvectors of their Gram matrix."""
        wave = model.probe.wave.data
        if len(wave) > 1:
            turned = orthogonalise(wave)
            # Eigenvectors have any phase: the one that turns the modes least keeps momenta meaningful.
            overlap = (turned.conj() * wave).sum((-2, -1), keepdim=True).angle()
            wave.copy_(turned * torch.polar(torch.ones_like(overlap), overlap))


@dataclass(frozen=True)
class ProbePower(Constraint):
    """Keeps the probe's total power at ``electrons`` per pattern (0: what it was at the start), so that it does not trade with the object."""

    electrons: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.electrons < 0:
            raise RecipeError(f"probe_power electrons = {self.electrons}: a positive number, or 0 for that of the start, is needed")

    def apply(self, model: Ptychography) -> None:
        """Scale all modes by one factor."""
        wanted = self.electrons or float(model.initial_power)
        model.probe.wave.data.mul_(torch.sqrt(wanted / model.probe.power().sum()))


@dataclass(frozen=True)
class Constraints:
    """Which constraints act; None leaves one out. They act in this order."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "allow_inf_nan": False}  # for recipe.py

    pure_phase: PurePhase | None = None
    amplitude: Amplitude | None = None
    slice_smoothing: SliceSmoothing | None = None
    positive_phase: PositivePhase | None = None
    probe_power: ProbePower | None = None
    orthogonal_modes: OrthogonalModes | None = None

    def apply(self, model: Ptychography, epoch: int) -> None:
        """Impose all that are due after this epoch."""
        ordered = (self.pure_phase, self.amplitude, self.slice_smoothing, self.positive_phase, self.probe_power, self.orthogonal_modes)
        with torch.no_grad():
            for constraint in ordered:
                if constraint is not None and constraint.due(epoch):
                    constraint.apply(model)


def normalise(transmission: Tensor) -> None:
    """Divide a complex tensor by its modulus, in place."""
    scale = torch.rsqrt((transmission.real.square() + transmission.imag.square()).clamp_min_(1e-20))
    transmission.mul_(scale)


def _as_complex(real: Tensor) -> Tensor:
    return torch.complex(real, torch.zeros_like(real))


def _unwrapped(transmission: Tensor) -> Tensor:
    """Phase in (-pi/2, 3 pi/2]: strong positive phases stay above the weak ones."""
    phase = torch.angle(transmission)
    return torch.where(phase < -torch.pi / 2, phase + 2 * torch.pi, phase)


def _zero_level(phase: Tensor, allowed: Tensor) -> Tensor:
    """The level below which the phases (N,) lack ``allowed`` on average: mean of max(level - phase, 0) = allowed."""
    ordered = torch.sort(phase).values
    rank = torch.arange(len(ordered), device=phase.device)
    lack = rank * ordered - torch.cumsum(ordered, 0) + ordered
    k = (lack <= allowed * len(ordered)).sum() - 1
    return ordered[k] + (allowed * len(ordered) - lack[k]) / (k + 1)
