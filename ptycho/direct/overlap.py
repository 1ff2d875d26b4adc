"""The probe's spectrum at any frequency, and how it overlaps with itself on a detector pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ptycho.geometry import Geometry
from ptycho.optics import aberration_phase, aperture

#: Width of the aperture's edge in detector pixels, as the forward model has it.
_EDGE_PX = 1.0
#: One sample along the side of a pixel for so much change of the phase, in rad: Gauss's quadrature errs by less than 0.5 %.
_TURN_RAD = 1.5
#: Samples along the side of a pixel: the edge of the aperture needs at least the least.
_LEAST, _MOST = 2, 8


@dataclass(frozen=True, eq=False)
class Overlaps:
    """The probe P(k) = A(k) exp(-i chi(k)) of a geometry, of unit power on the detector, and its products on each detector pixel.

    A pixel integrates over its area: sums over ``offsets_invA`` (samples, 2) with the ``weights`` (samples,).
    """

    geometry: Geometry
    offsets_invA: Tensor = field(repr=False)
    weights: Tensor = field(repr=False)
    amplitude: float

    @classmethod
    def of(cls, geometry: Geometry) -> Overlaps:
        """With as many samples of a pixel as the aberrations need."""
        angle = torch.arange(16, dtype=torch.float64) * math.pi / 8
        edge = geometry.aperture_invA * torch.stack([torch.sin(angle), torch.cos(angle)], -1)
        # chi changes most across a pixel at the edge of the aperture; the product of two opposite edges, twice as much.
        chi = [_chi(geometry, edge * (1 + side * geometry.pixel_invA / geometry.aperture_invA / 2)) for side in (-1, 1)]
        turn = 2 * float((chi[1] - chi[0]).abs().max())
        nodes, weights = np.polynomial.legendre.leggauss(min(max(_LEAST, math.ceil(turn / _TURN_RAD)), _MOST))
        axis, weight = torch.from_numpy(nodes) * geometry.pixel_invA / 2, torch.from_numpy(weights) / 2
        probe = cls(geometry, torch.cartesian_prod(axis, axis), torch.outer(weight, weight).ravel(), 1.0)
        return replace(probe, amplitude=1 / math.sqrt(float(probe.intensity(pixel_grid(geometry)).sum())))

    def wave(self, k: Tensor) -> Tensor:
        """P at frequencies k (..., 2) = (y, x) in Å⁻¹, complex (...) of k's precision."""
        ky, kx = k.unbind(-1)
        radius, edge = self.geometry.aperture_invA, _EDGE_PX * self.geometry.pixel_invA
        inside = torch.hypot(ky, kx) < radius + edge / 2
        values = torch.zeros(ky.shape, dtype=torch.complex128 if k.dtype == torch.float64 else torch.complex64)
        # Most frequencies are outside, and a phase costs more than a comparison.
        ky, kx = ky[inside], kx[inside]
        values[inside] = torch.polar(self.amplitude * aperture(ky, kx, radius, edge), -_chi(self.geometry, torch.stack([ky, kx], -1)))
        return values

    def intensity(self, k: Tensor) -> Tensor:
        """|P|^2 on pixels k (n, 2): the share of the beam that falls on each without a specimen, float64 (n,)."""
        samples = zip(self.offsets_invA, self.weights.tolist(), strict=True)
        return torch.stack([weight * self.wave(k + offset).abs().square() for offset, weight in samples]).sum(0)

    def product(self, k: Tensor, q: Tensor) -> Tensor:
        """P(k) P*(k + q), complex64 (n, m) for pixels k (n, 2) and frequencies q (m, 2)."""
        k, q = k.float(), q.float()
        total = torch.zeros(len(k), len(q), dtype=torch.complex64)
        for offset, weight in zip(self.offsets_invA.float(), self.weights.tolist(), strict=True):
            total += (weight * self.wave(k + offset))[:, None] * self.wave(k[:, None] + offset + q).conj()
        return total


def pixel_grid(geometry: Geometry) -> Tensor:
    """k of every detector pixel, float64 (ky * kx, 2) = (y, x) in Å⁻¹, row by row; zero frequency at (ky // 2, kx // 2)."""
    axes = [(torch.arange(n, dtype=torch.float64) - n // 2) * geometry.pixel_invA for n in geometry.pattern_shape]
    return torch.cartesian_prod(*axes)


def _chi(geometry: Geometry, k: Tensor) -> Tensor:
    return aberration_phase(geometry.aberrations, k[..., 0], k[..., 1], geometry.wavelength_A)
