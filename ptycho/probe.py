"""The illumination: incoherent modes, each a complex wave."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ptycho.aberrations import Aberrations
from ptycho.kept import Kept
from ptycho.optics import aberration_basis, frequency_grid
from ptycho.source import source_factors, source_modes, source_order

#: The source whose modes a probe begins with when there are several: its standard deviation times the aperture's radius.
_SOURCE = 0.15


class Probe(nn.Module):
    """Incoherent probe modes and a parametric correction of their aberrations.

    ``wave`` is complex (modes, y, x) in real space, centred at pixel ``size // 2``; sum |wave|^2 is the number of electrons per
    pattern. ``correction_A`` holds the changes in Å of the Cartesian coefficients of ``terms``, common to all modes, as the phase
    factor exp(-i sum C chi_C(k)) on the spectrum (zero to begin with: the aberrations of ``wave`` itself are in ``wave``).
    ``aperture`` (y, x) is 1 at the frequencies that the probe-forming aperture can pass, in corner order: the gradient lives there alone.
    ``source_A2`` (1,) is the variance of a Gaussian source, which turns each mode into several (``source.py``); (0,) for a point.
    At position j the first mode is wave[0] + sum_k ``coefficients`` [j, k] ``variations`` [k] (orthogonal probe relaxation, Odstrcil et al.,
    Opt. Express 24 (2016) 8360), real (N, k) and complex (k, y, x); coefficients (0, k) for a probe that stays the same. A beam current that
    drifts is the variation along wave[0] itself.
    """

    chi: Tensor
    aperture: Tensor
    k_axis: Tensor

    def __init__(
        self,
        wave: Tensor,
        pixel_A: float,
        wavelength_A: float,
        terms: Aberrations = (),
        aperture: Tensor | None = None,
        source_A: float = 0.0,
        opr_modes: int = 0,
    ) -> None:
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
        self.register_buffer("k_axis", ky[:, 0].to(real), persistent=False)
        power = torch.fft.fft2(wave).abs().square().sum(0).double().cpu()
        #: Root mean square frequency along an axis in Å⁻¹, half the radius of a disk.
        self.width_invA = float(((power * (ky**2 + kx**2)).sum() / power.sum() / 2).sqrt())
        self.source_A2 = nn.Parameter(torch.full((1 if source_A > 0 else 0,), source_A**2, dtype=real))
        self.variations = nn.Parameter(wave.new_zeros(opr_modes, *wave.shape[-2:]))
        self.coefficients = nn.Parameter(torch.zeros(0, opr_modes, dtype=real, device=wave.device))
        self.source_order = source_order(source_A, 2 * self.width_invA)
        self._correction_kept, self._pull_back_kept, self._source_kept = Kept(), Kept(), Kept()

    @property
    def source_A(self) -> float:
        """Standard deviation of the source in Å, 0 for a point."""
        return float(self.source_A2.detach().sqrt()) if len(self.source_A2) else 0.0

    @property
    def modes(self) -> int:
        """Waves that pass the specimen for each pattern: the modes, each as many times as the source has modes."""
        return len(self.wave) * (source_modes(self.source_order) if len(self.source_A2) else 1)

    def mode_spectrum(self) -> Tensor:
        """Unitary Fourier transform of the modes with the corrected aberrations, complex (modes, y, x)."""
        return self.transformed(self.wave)

    def transformed(self, wave: Tensor) -> Tensor:
        """Unitary Fourier transform of waves (..., y, x) with the corrected aberrations."""
        spectrum = torch.fft.fft2(wave, norm="ortho")
        return spectrum if len(self.chi) == 0 else spectrum * self._correction()

    @torch.no_grad()
    def change(self, linear: Callable[[Tensor], Tensor]) -> None:
        """Apply a linear map of waves (..., y, x) in real space to the modes and their variations as they illuminate, aberrations corrected."""
        spectrum = self.transformed(torch.cat([self.wave, self.variations]))
        spectrum = torch.fft.fft2(linear(torch.fft.ifft2(spectrum, norm="ortho")), norm="ortho")
        wave = torch.fft.ifft2(spectrum if len(self.chi) == 0 else spectrum * self._correction().conj(), norm="ortho")
        self.wave.copy_(wave[: len(self.wave)])
        self.variations.copy_(wave[len(self.wave) :])

    def spectrum(self) -> Tensor:
        """The modes that illuminate, complex (modes x source modes, y, x): those of :meth:`mode_spectrum`, each seen from the whole source."""
        return self.from_source(self.mode_spectrum())

    def from_source(self, spectrum: Tensor) -> Tensor:
        """Modes (..., modes, y, x) as those from the whole source, (..., modes x source modes, y, x)."""
        return spectrum if len(self.source_A2) == 0 else (spectrum.unsqueeze(-3) * self.source_factors()).flatten(-4, -3)

    @property
    def varies(self) -> bool:
        """Whether the probe is a different one at each position."""
        return len(self.coefficients) > 0

    def coefficients_of(self, index: Tensor) -> Tensor:
        """Coefficients (B, k) of the variations at the positions ``index`` (B,); (0, k) where there are none."""
        return self.coefficients[index] if self.varies else self.coefficients

    def variation_spectrum(self) -> Tensor:
        """What :meth:`spectrum` is to the modes, to the variations: complex (k, source modes, y, x)."""
        return self.from_source(self.transformed(self.variations)[:, None]) if self.varies else self.variations[:, None]

    def waves(self, index: Tensor) -> Tensor:
        """``wave`` as it is at each of the positions ``index`` (B,), (B, modes, y, x), or (1, modes, y, x) where it stays the same."""
        if not self.varies:
            return self.wave[None]
        change = torch.einsum("bk,kyx->byx", self.coefficients[index].to(self.wave.dtype), self.variations)
        return torch.cat([(self.wave[0] + change)[:, None], self.wave[1:].expand(len(index), -1, -1, -1)], 1)

    def spectra(self, index: Tensor) -> Tensor:
        """:meth:`spectrum` at each of the positions, as :meth:`waves`."""
        return self.from_source(self.transformed(self.waves(index)))

    def pull_back(self, gradient: Tensor) -> Tensor:
        """Gradient with respect to ``wave`` (modes, y, x), inside the aperture, from one with respect to :meth:`spectrum`."""
        if len(self.source_A2):
            factors = self.source_factors()
            gradient = (gradient.unflatten(0, (-1, len(factors))) * factors).sum(1)
        correction, aperture = self.correction_A, self.aperture
        passes = aperture if len(self.chi) == 0 else self._pull_back_kept(lambda: self._phase_factor().conj() * aperture, correction, aperture)
        return torch.fft.ifft2(gradient * passes, norm="ortho")

    def source_factors(self) -> Tensor:
        """Real (source modes, y, x), see :func:`ptycho.source.source_factors`; only where there is a source."""
        order, variance = self.source_order, self.source_A2
        return self._source_kept(lambda: source_factors(self.k_axis, variance, self.width_invA, order), variance, torch.tensor(order))

    def refit_source(self) -> None:
        """Take as many modes as the present size of the source needs."""
        self.source_order = source_order(self.source_A, 2 * self.width_invA)

    def source_slope(self, gradient: Tensor) -> Tensor:
        """Derivative with respect to ``source_A2``, (1,), from a gradient with respect to :meth:`spectrum`."""
        order = self.source_order
        weight = (gradient.unflatten(0, (-1, source_modes(order))).conj() * self.mode_spectrum()[:, None]).real.sum(0)
        with torch.enable_grad():
            variance = self.source_A2.detach().requires_grad_()
            total = (source_factors(self.k_axis, variance, self.width_invA, order) * weight).sum()
        return torch.autograd.grad(total, variance)[0]

    def _correction(self) -> Tensor:
        """exp(-i sum C chi_C), (y, x)."""
        return self._correction_kept(self._phase_factor, self.correction_A)

    def _phase_factor(self) -> Tensor:
        chi = torch.einsum("c,cyx->yx", self.correction_A, self.chi)
        return torch.complex(torch.cos(chi), -torch.sin(chi))

    @torch.no_grad()
    def normalise_variations(self) -> None:
        """The same probes with orthonormal variations, strongest first, and coefficients of mean zero: what they share belongs to ``wave``.

        As real vectors, since the coefficients are real: the singular value decomposition of their product.
        """
        if not self.varies:
            return
        coefficients, flat = self.coefficients.data, torch.view_as_real(self.variations.data).flatten(1)
        mean = coefficients.mean(0)
        self.wave.data[0] += torch.einsum("k,kyx->yx", mean.to(self.wave.dtype), self.variations.data)
        left, of_left = torch.linalg.qr((coefficients - mean).double())
        right, of_right = torch.linalg.qr(flat.mT.double())
        turn, values, back = torch.linalg.svd(of_left @ of_right.mT)
        self.coefficients.data = (left @ turn * values).to(coefficients.dtype)
        unit = (back @ right.mT).to(flat.dtype).reshape(*self.variations.shape, 2)
        self.variations.data = torch.view_as_complex(unit.contiguous())

    def power(self) -> Tensor:
        """Electrons per pattern in each mode, (modes,)."""
        return torch.linalg.vector_norm(self.wave.detach(), dim=(-2, -1)) ** 2


def seed_modes(wave: Tensor, modes: int, share: float = 0.02) -> Tensor:
    """Extend (m, y, x) to orthogonal (modes, y, x) of the same total power.

    One wave becomes the modes of a Gaussian source of sigma = 0.15 / k_aperture behind it (``source.py``), strongest first: a third of
    the electrons in all but the first. Modes must begin strong, since their power moves slowly: from 2 % each they are still at 2 %
    after many passes, and worse than one wave, where a source of 0.4 Å wants them at 17 %; begun here they are better than one wave
    for a source of 0.4 Å at 1500 e/Å^2 (benchmarks/publication.py T02). To several modes others of the kind are added
    with ``share`` of the power each.
    """
    have = wave.shape[0]
    if modes <= have:
        return wave[:modes] * (torch.linalg.vector_norm(wave) / torch.linalg.vector_norm(wave[:modes]))
    total = torch.linalg.vector_norm(wave) ** 2
    # Modes of equal power are found in any mixture: on the CPU, so that it is the same one on every device.
    candidates = orthogonalise(_of_source(wave[0].cpu().to(torch.complex128), modes)).to(wave)
    if have == 1:
        return candidates[:modes] * (torch.sqrt(total) / torch.linalg.vector_norm(candidates[:modes]))
    found = list(wave)
    for candidate in candidates[1:]:
        if len(found) == modes:
            break
        for other in found:
            candidate = candidate - other * (torch.vdot(other.flatten(), candidate.flatten()) / torch.linalg.vector_norm(other) ** 2)
        found.append(candidate * (torch.sqrt(share * total) / torch.linalg.vector_norm(candidate)))
    extended = torch.stack(found)
    extended[:have] *= math.sqrt(max(1 - share * (modes - have), share))
    return extended * torch.sqrt(total) / torch.linalg.vector_norm(extended)


def _of_source(wave: Tensor, modes: int) -> Tensor:
    """At least ``modes`` modes of one wave (y, x) seen from a source, (more, y, x)."""
    order = next(order for order in range(modes) if source_modes(order) >= modes)
    spectrum = torch.fft.fft2(wave)
    k = torch.fft.fftfreq(wave.shape[-1], dtype=torch.float64, device=wave.device)
    power = spectrum.abs().square()
    along = float((power * (k[:, None] ** 2 + k**2)).sum() / power.sum()) / 2
    width = math.sqrt(along) or 1.0
    # Twice the rms frequency along an axis is the radius of a disk.
    variance = torch.tensor([(_SOURCE / (2 * width)) ** 2], dtype=torch.float64, device=wave.device)
    return torch.fft.ifft2(spectrum * source_factors(k, variance, width, order))


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
