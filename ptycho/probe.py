"""The illumination: incoherent modes, each a complex wave."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ptycho.aberrations import Aberrations
from ptycho.optics import aberration_basis, frequency_grid


class Probe(nn.Module):
    """Incoherent probe modes and a parametric correction of their aberrations.

    ``wave`` is complex (modes, y, x) in real space, centred at pixel ``size // 2``; sum |wave|^2 is the number of electrons per
    pattern. ``correction_A`` holds the changes in Å of the Cartesian coefficients of ``terms``, common to all modes, as the phase
    factor exp(-i sum C chi_C(k)) on the spectrum (zero to begin with: the aberrations of ``wave`` itself are in ``wave``).
    ``aperture`` (y, x) is 1 at the frequencies that the probe-forming aperture can pass, in corner order: the gradient lives there alone.
    """

    chi: Tensor
    aperture: Tensor

    def __init__(self, wave: Tensor, pixel_A: float, wavelength_A: float, terms: Aberrations = (), aperture: Tensor | None = None) -> None:
        super().__init__()
        real = wave.real.dtype
        self.wave = nn.Parameter(wave.clone())
        ky, kx = frequency_grid(wave.shape[-1], pixel_A)
        basis = [b for term in terms for b in aberration_basis(term, ky, kx, wavelength_A)]
        chi = torch.stack(basis) if basis else torch.zeros(0, *wave.shape[-2:])
        self.register_buffer("chi", chi.to(real), persistent=False)
        self.register_buffer("aperture", torch.ones(wave.shape[-2:], dtype=real) if aperture is None else aperture.to(real), persistent=False)
        self.correction_A = nn.Parameter(torch.zeros(len(basis), dtype=real))
        self.terms = terms
        self._kept: tuple[Tensor, Tensor] | None = None

    def spectrum(self) -> Tensor:
        """Unitary Fourier transform of the modes with the corrected aberrations, complex (modes, y, x)."""
        spectrum = torch.fft.fft2(self.wave, norm="ortho")
        return spectrum if len(self.chi) == 0 else spectrum * self._correction()

    def pull_back(self, gradient: Tensor) -> Tensor:
        """Gradient with respect to ``wave``, inside the aperture, from one with respect to :meth:`spectrum`, both (modes, y, x)."""
        turned = gradient if len(self.chi) == 0 else gradient * self._correction().conj()
        return torch.fft.ifft2(turned * self.aperture, norm="ortho")

    def _correction(self) -> Tensor:
        """exp(-i sum C chi_C), (y, x); on the CPU and outside of autograd the last one is kept as long as the coefficients stay."""
        if torch.is_grad_enabled() or self.chi.device.type != "cpu":
            return self._phase_factor()
        if self._kept is None or not torch.equal(self._kept[0], self.correction_A):
            self._kept = (self.correction_A.detach().clone(), self._phase_factor())
        return self._kept[1]

    def _phase_factor(self) -> Tensor:
        chi = torch.einsum("c,cyx->yx", self.correction_A, self.chi)
        return torch.complex(torch.cos(chi), -torch.sin(chi))

    def power(self) -> Tensor:
        """Electrons per pattern in each mode, (modes,)."""
        return torch.linalg.vector_norm(self.wave.detach(), dim=(-2, -1)) ** 2


def seed_modes(wave: Tensor, modes: int, share: float = 0.02) -> Tensor:
    """Extend (m, y, x) to (modes, y, x): Hermite-like x^a y^b times mode 0, orthogonal, each with ``share`` of the total power.

    The total power stays. Lower-order products come first, as a small source or a vibration would populate them (Thibault & Menzel,
    Nature 494 (2013) 68).
    """
    have = wave.shape[0]
    if modes <= have:
        return wave[:modes] * (torch.linalg.vector_norm(wave) / torch.linalg.vector_norm(wave[:modes]))
    size = wave.shape[-1]
    axis = torch.arange(size, dtype=wave.real.dtype, device=wave.device) - size // 2
    total = torch.linalg.vector_norm(wave) ** 2
    width = math.sqrt(float((wave[0].abs() ** 2 * (axis[:, None] ** 2 + axis**2)).sum() / (wave[0].abs() ** 2).sum())) or 1.0
    found = list(wave)
    for order in range(1, size):
        for a in range(order + 1):
            if len(found) == modes:
                break
            candidate = wave[0] * (axis[None, :] / width) ** (order - a) * (axis[:, None] / width) ** a
            for other in found:
                candidate = candidate - other * (torch.vdot(other.flatten(), candidate.flatten()) / torch.linalg.vector_norm(other) ** 2)
            found.append(candidate * (torch.sqrt(share * total) / torch.linalg.vector_norm(candidate)))
    extended = torch.stack(found)
    extended[:have] *= math.sqrt(max(1 - share * (modes - have), share))
    return extended * torch.sqrt(total) / torch.linalg.vector_norm(extended)


def orthogonalise(wave: Tensor) -> Tensor:
    """The same incoherent illumination in orthogonal modes, strongest first, (modes, y, x).

    The eigenvectors of the Gram matrix A_mn = <P_m, P_n> rotate the modes; the sum of |P|^2 at the detector does not change
    (Thibault & Menzel, Nature 494 (2013) 68, methods).
    """
    flat = wave.flatten(1)
    gram = (flat @ flat.mH).to(torch.complex128)
    _, vectors = torch.linalg.eigh(gram)
    turned = vectors.flip(-1).mH.to(wave.dtype) @ flat
    return turned.reshape(wave.shape)
