"""Constraints along the beam: what is known of slices above one another. Nothing passes the surfaces: top and bottom do not mix.

What is coupled is the density, ln O per Å of depth, so that slices may be of unequal thickness.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ptycho.constraint.base import Constraint, canvas_frequencies, logarithm
from ptycho.errors import RecipeError
from ptycho.model import Ptychography


@dataclass(frozen=True)
class SliceSmoothing(Constraint):
    """A Gaussian of standard deviation ``sigma_A`` along the beam; nothing passes the surfaces, so that top and bottom do not mix."""

    sigma_A: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sigma_A > 0:
            raise RecipeError(f"slice_smoothing sigma_A = {self.sigma_A}: a positive length in Å is needed")

    def apply(self, model: Ptychography) -> None:
        """Scattering per Å diffuses along the beam."""
        transmission = model.object.transmission.data
        thickness = model.propagator.thickness_A.detach()
        density = logarithm(transmission) / thickness[:, None, None]
        weight = diffusion(thickness, self.sigma_A).to(density.dtype)
        smooth = torch.einsum("zs,osyx->ozyx", weight, density)
        transmission.copy_(torch.exp(smooth * thickness[:, None, None]))


@dataclass(frozen=True)
class SliceCoupling(Constraint):
    """Takes from each lateral frequency the depth that it cannot know: W = 1 - (2 / pi) arctan((strength kz / kr)^2).

    The weight is that of Chen et al., Science 372 (2021) 826, supplement. ``strength`` is a pure number: at kz = kr / strength half of the
    amplitude passes. Illumination of semiangle alpha tells depths apart up to about kz = 2 alpha kr; what a solver finds beyond, in the
    missing cone, is noise or memory: 1 / (2 alpha), 25 for 20 mrad, takes that away, the usual 1 the slowest frequencies alone. The sum
    over the slices (kz = 0) stays as it is.
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.strength > 0:
            raise RecipeError(f"slice_coupling strength = {self.strength}: a positive number is needed, 1 as published")

    def apply(self, model: Ptychography) -> None:
        """Weigh every (ky, kx, kz) of the density between closed ends."""
        transmission = model.object.transmission.data
        thickness = model.propagator.thickness_A.detach()
        into, kz, back = depth_modes(thickness)
        ky, kx = canvas_frequencies(model)
        spectrum = torch.fft.fft2(logarithm(transmission) / thickness[:, None, None])
        modes = torch.einsum("ms,osyx->omyx", into.to(spectrum.dtype), spectrum)
        height = (self.strength * kz.to(ky.dtype)).square()[:, None, None]
        modes *= 1 - (2 / math.pi) * torch.atan2(height, ky**2 + kx**2)
        density = torch.fft.ifft2(torch.einsum("sm,omyx->osyx", back.to(spectrum.dtype), modes))
        transmission.copy_(torch.exp(density * thickness[:, None, None]))


def depth_modes(thickness: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Standing waves between the surfaces: ``into`` (modes, slices), ``kz`` (modes,) in Å⁻¹ from 0 upwards, ``back`` (slices, modes).

    They are the eigenvectors of the Laplacian in finite volumes with closed ends; for equal slices the cosines of a mirrored stack.
    The first one is the mean; the sum of density times thickness is in it alone.
    """
    thickness = thickness.double()
    between = 2 / (thickness[1:] + thickness[:-1])
    coupling = torch.diag(between, 1) + torch.diag(between, -1)
    root = thickness.sqrt()
    stiffness = (torch.diag(coupling.sum(1)) - coupling) / (root[:, None] * root)
    squared, vectors = torch.linalg.eigh(stiffness)
    kz = squared.clamp_min(0).sqrt() / (2 * math.pi)
    kz[0] = 0
    return vectors.mT * root, kz, vectors / root[:, None]


def diffusion(thickness: Tensor, sigma: float) -> Tensor:
    """(slices, slices): what diffusion makes of the densities of slices between closed ends, a Gaussian of ``sigma`` far from them.

    exp(sigma^2 / 2 times the Laplacian in finite volumes) keeps constant densities and the sum over density times thickness exactly.
    """
    into, kz, back = depth_modes(thickness)
    return back @ (torch.exp(-0.5 * (2 * math.pi * sigma * kz).square())[:, None] * into)
