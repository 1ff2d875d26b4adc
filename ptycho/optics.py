"""Formulas of electron optics as torch tensors: frequencies, aperture, aberrations, propagation, sub-pixel shifts.

Reciprocal arrays have zero frequency in the corner (``fftfreq`` order). Waves are exp(+2 pi i k.r), lengths Å, frequencies Å⁻¹.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ptycho.aberrations import Aberration, Aberrations


def frequency_grid(size: int, pixel_A: float, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """(ky, kx) in Å⁻¹ as a (size, 1) column and a (1, size) row, to be broadcast against each other."""
    k = torch.fft.fftfreq(size, pixel_A, dtype=dtype)
    return k[:, None], k[None, :]


def aberration_basis(term: Aberration, ky: Tensor, kx: Tensor, wavelength_A: float) -> list[Tensor]:
    """chi per Å of the term's Cartesian coefficients: [cosine part] for m = 0, [cosine part, sine part] otherwise; each (y, x), rad/Å.

    chi = (2 pi / lambda) alpha^(n+1) / (n+1) * (a cos m phi + b sin m phi) (Krivanek et al., Ultramicroscopy 78 (1999) 1).
    """
    alpha = wavelength_A * torch.hypot(ky, kx)
    radial = 2 * math.pi / wavelength_A * alpha ** (term.n + 1) / (term.n + 1)
    if term.m == 0:
        return [radial]
    phi = torch.atan2(ky.expand_as(alpha), kx.expand_as(alpha))
    return [radial * torch.cos(term.m * phi), radial * torch.sin(term.m * phi)]


def aberration_phase(terms: Aberrations, ky: Tensor, kx: Tensor, wavelength_A: float) -> Tensor:
    """chi(k) in rad, (y, x); the probe's phase factor is exp(-i chi)."""
    chi = torch.zeros(torch.broadcast_shapes(ky.shape, kx.shape), dtype=ky.dtype)
    for term in terms:
        for coefficient, basis in zip((term.a, term.b), aberration_basis(term, ky, kx, wavelength_A), strict=False):
            chi = chi + coefficient * basis
    return chi


def aperture(ky: Tensor, kx: Tensor, radius_invA: float, edge_invA: float) -> Tensor:
    """Amplitude of a round aperture, (y, x): 1 inside, 0 outside; its square falls linearly over ``edge_invA`` across the edge (0: hard edge).

    The intensity is what the area of a pixel cut by the edge passes, so that the disk keeps its area.
    """
    k = torch.hypot(ky, kx)
    if edge_invA <= 0:
        return (k <= radius_invA).to(k.dtype)
    return ((radius_invA - k) / edge_invA + 0.5).clamp(0, 1).sqrt()


def probe_wave(size: int, pixel_A: float, wavelength_A: float, semiangle_mrad: float, terms: Aberrations, edge_px: float = 1.0) -> Tensor:
    """A focused or defocused probe of unit power, complex128 (y, x), its centre at pixel ``size // 2``.

    ``edge_px`` is the width of the aperture's soft edge in pixels of reciprocal space, 0 for a hard edge.
    """
    ky, kx = frequency_grid(size, pixel_A)
    amplitude = aperture(ky, kx, semiangle_mrad * 1e-3 / wavelength_A, edge_px / (size * pixel_A))
    spectrum = torch.polar(amplitude, -aberration_phase(terms, ky, kx, wavelength_A))
    wave = torch.fft.fftshift(torch.fft.ifft2(spectrum, norm="ortho"))
    return wave / torch.linalg.vector_norm(wave)


def band_limit(size: int, fraction: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """1 where |k| <= fraction * k_max, 0 beyond, (y, x): keeps a product of two band-limited functions from wrapping in k."""
    fy, fx = frequency_grid(size, 1.0, dtype)
    return (torch.hypot(fy, fx) <= fraction * 0.5 + 1e-12).to(dtype)


def propagation_phase(ky: Tensor, kx: Tensor, wavelength_A: float, tilt_rad: Tensor) -> Tensor:
    """kappa(k), rad per Å of propagation, (..., y, x) for tilts (..., 2) = (y, x): the Fresnel kernel is exp(i kappa dz).

    kappa = -pi lambda k^2 + 2 pi k.tan(theta): the adaptive propagator (Sha, Cui & Yu, Sci. Adv. 8 (2022) eabn2275, eq. 2).
    """
    tangent = torch.tan(tilt_rad)[..., None, None]
    return -math.pi * wavelength_A * (ky**2 + kx**2) + 2 * math.pi * (ky * tangent[..., 0, :, :] + kx * tangent[..., 1, :, :])


def shift_ramps(offsets_px: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Fourier ramps that shift by ``offsets_px`` (N, 2) = (y, x): complex (N, size, 1) and (N, 1, size), to be multiplied.

    ramp = exp(-2 pi i (f_y d_y + f_x d_x)), the Fourier shift theorem.
    """
    f = torch.fft.fftfreq(size, dtype=offsets_px.dtype, device=offsets_px.device)
    angle = -2 * math.pi * offsets_px[:, :, None] * f
    ramp = torch.complex(torch.cos(angle), torch.sin(angle))
    return ramp[:, 0, :, None], ramp[:, 1, None, :]
