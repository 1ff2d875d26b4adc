"""The probe's spectrum at any frequency, and how it overlaps with itself on a detector pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ptycho.geometry import Geometry
from ptycho.optics import aberration_phase, aperture

#: Width of the aperture's edge in detector pixels, as the forward model has it.
_EDGE_PX = 1.0
#: The phase may change by about this much from one sample of a pixel's area to the next, in rad.
_TURN_RAD = 1.5
#: Samples along the side of a pixel: the edge of the aperture needs at least the least.
_LEAST, _MOST = 2, 6


@dataclass(frozen=True, eq=False)
class Overlaps:
    """The probe P(k) = A(k) exp(-i chi(k)) of a geometry, of unit power on the detector, and its products on each detector pixel.

    A pixel integrates over its area: products are means over ``offsets_invA`` (samples, 2).
    """

    geometry: Geometry
    offsets_invA: Tensor = field(repr=False)
    amplitude: float

    @classmethod
    def of(cls, geometry: Geometry) -> Overlaps:
        """With as many samples of a pixel as the aberrations need."""
        pixel = geometry.pixel_invA
        edge = geometry.aperture_invA * torch.stack([torch.cos(a := torch.arange(16) * math.pi / 8), torch.sin(a)], -1).double()
        # chi differs most between the two neighbours of a pixel at the edge of the aperture.
        chi = [_chi(geometry, edge * (1 + side * pixel / geometry.aperture_invA / 2)) for side in (-1, 1)]
        samples = min(max(_LEAST, math.ceil(float((chi[1] - chi[0]).abs().max()) / _TURN_RAD)), _MOST)
        axis = ((torch.arange(samples, dtype=torch.float64) + 0.5) / samples - 0.5) * pixel
        probe = cls(geometry, torch.cartesian_prod(axis, axis), 1.0)
        power = float(probe.intensity(pixel_grid(geometry)).sum())
        return cls(geometry, probe.offsets_invA, 1 / math.sqrt(power))

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
        return torch.stack([self.wave(k + offset).abs().square() for offset in self.offsets_invA]).mean(0)

    def product(self, k: Tensor, q: Tensor) -> Tensor:
        """P(k) P*(k + q), complex64 (n, m) for pixels k (n, 2) and frequencies q (m, 2)."""
        k, q = k.float(), q.float()
        total = torch.zeros(len(k), len(q), dtype=torch.complex64)
        for offset in self.offsets_invA.float():
            total += self.wave(k + offset)[:, None] * self.wave(k[:, None] + offset + q).conj()
        return total / len(self.offsets_invA)


def pixel_grid(geometry: Geometry) -> Tensor:
    """k of every detector pixel, float64 (ky * kx, 2) = (y, x) in Å⁻¹, row by row; zero frequency at (ky // 2, kx // 2)."""
    axes = [(torch.arange(n, dtype=torch.float64) - n // 2) * geometry.pixel_invA for n in geometry.pattern_shape]
    return torch.cartesian_prod(*axes)


def _chi(geometry: Geometry, k: Tensor) -> Tensor:
    return aberration_phase(geometry.aberrations, k[..., 0], k[..., 1], geometry.wavelength_A)
