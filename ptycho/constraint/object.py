"""Constraints of the object slice by slice: its phase, its amplitude, its finest detail."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ptycho.constraint.base import Constraint, canvas_frequencies, logarithm, scanned, unwrapped
from ptycho.errors import RecipeError
from ptycho.model import Ptychography


def expected_phase_rad(electrons_per_pixel: float) -> float:
    """The prior for few counts: six times the phase noise of a pixel, sigma = 1 / sqrt(4 DQE N) with DQE = 0.2, in rad; at least 0.2.

    What lies below sigma^2 / m of the prior exp(-phase / m) is taken away: a sixth of the noise, at low dose and for any pixel. A fixed m
    of 0.2 rad takes a whole sigma at 400 e/Å2 and leaves nothing (correlation 0.3 where this has 0.84, benchmarks/publication.py T07). Where
    there is little noise columns hold more than six times of it, and less than 0.2 rad would hold them down.
    """
    return max(0.2, 6 / math.sqrt(4 * 0.2 * max(electrons_per_pixel, 1e-3)))


@dataclass(frozen=True)
class PositivePhase(Constraint):
    """Phase >= 0 in every slice: atoms only add to the projected potential.

    ``mean_phase_rad`` m is what a pixel is expected to hold: a prior exp(-phase / m), one count of evidence against dose; it fades as
    the dose rises, and 0 leaves it out. With few counts the default is :func:`expected_phase_rad`. The zero of the phase is free (a
    constant phase is not seen by any detector): with the prior it is put where clipping noise costs as much as the prior gains, so that a
    specimen without vacuum keeps its contrast.
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
            seen = scanned(light)
            # Clipping costs (zero - phase)^2 light / 2 in log-likelihood per pixel, the prior gains zero / m: equal slopes.
            allowed = 1 / (light[seen].mean() * self.mean_phase_rad)
            for slice_ in transmission.flatten(0, 1):
                zero = _zero_level(unwrapped(slice_[seen]), allowed).clamp(max=0)
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
class Absorption(Constraint):
    """Amplitude exp(-``ratio`` phase): what scatters more also takes more electrons away, in one proportion (absorptive potential).

    Half the unknowns, as a pure phase, without its denial that heavy atoms scatter out of the detector. The zero of the phase has to be
    that of vacuum, as ``positive_phase`` puts it.
    """

    ratio: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ratio >= 0:
            raise RecipeError(f"absorption ratio = {self.ratio}: ln(1 / amplitude) per rad of phase, 0 or more, is needed")

    def apply(self, model: Ptychography) -> None:
        """The nearest ln O on the line ln|O| = -ratio phase: an electron tells as much of either part."""
        transmission = model.object.transmission.data
        found = logarithm(transmission)
        phase = (found.imag - self.ratio * found.real) / (1 + self.ratio**2)
        transmission.copy_(torch.polar(torch.exp(-self.ratio * phase), phase))


@dataclass(frozen=True, kw_only=True)
class LowPass(Constraint):
    """No detail of the object finer than ``cutoff_invA``, in phase and ln amplitude; the transfer falls over ``edge_invA`` about it as a cosine."""

    cutoff_invA: float
    edge_invA: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.cutoff_invA > 0 or not 0 <= self.edge_invA <= 2 * self.cutoff_invA:
            given = f"low_pass cutoff_invA = {self.cutoff_invA}, edge_invA = {self.edge_invA}"
            raise RecipeError(f"{given}: a positive frequency in 1/Å and an edge of at most twice as much are needed")

    def apply(self, model: Ptychography) -> None:
        """One filter for all slices."""
        transmission = model.object.transmission.data
        ky, kx = canvas_frequencies(model)
        beyond = (torch.hypot(ky, kx) - self.cutoff_invA) / max(self.edge_invA, 1e-12)
        transfer = 0.5 + 0.5 * torch.cos(math.pi * (beyond + 0.5).clamp(0, 1))
        transmission.copy_(torch.exp(torch.fft.ifft2(torch.fft.fft2(logarithm(transmission)) * transfer)))


def normalise(transmission: Tensor) -> None:
    """Divide a complex tensor by its modulus, in place."""
    scale = torch.rsqrt((transmission.real.square() + transmission.imag.square()).clamp_min_(1e-20))
    transmission.mul_(scale)


def _as_complex(real: Tensor) -> Tensor:
    return torch.complex(real, torch.zeros_like(real))


def _zero_level(phase: Tensor, allowed: Tensor) -> Tensor:
    """The level below which the phases (N,) lack ``allowed`` on average: mean of max(level - phase, 0) = allowed."""
    ordered = torch.sort(phase).values
    if torch.are_deterministic_algorithms_enabled():
        ordered, allowed = ordered.cpu(), allowed.cpu()  # a GPU's running sums come out a little different each time
    rank = torch.arange(len(ordered), device=ordered.device)
    lack = rank * ordered - torch.cumsum(ordered, 0) + ordered
    k = (lack <= allowed * len(ordered)).sum() - 1
    return (ordered[k] + (allowed * len(ordered) - lack[k]) / (k + 1)).to(phase.device)
