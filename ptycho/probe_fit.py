"""The aberrations that a probe has, wherever it keeps them: in its parameters or in its free wave."""

from __future__ import annotations

import torch
from torch import Tensor

from ptycho.aberrations import Aberrations, corrected
from ptycho.optics import aberration_phase
from ptycho.probe import Probe

#: After the slopes have been fitted, this many times the phase itself, which is then less than half a turn off.
_POLISH = 3


@torch.no_grad()
def total_aberrations(probe: Probe, nominal: Aberrations, wavelength_A: float) -> Aberrations:
    """``nominal`` with what the strongest mode shows beyond it in the coefficients of ``probe.terms``.

    Learned coefficients and a free wave describe the same phase, and share it as it happens. So the phase of the whole spectrum is compared
    with the nominal one: first its differences between neighbouring frequencies, which no turn of 2 pi disturbs, then itself, by
    least squares weighted with the intensity. A constant and a slope, the place of the probe, are fitted along and left out.
    """
    if len(probe.chi) == 0:
        return nominal
    spectra = probe.mode_spectrum()
    strongest = spectra[int(spectra.abs().square().sum((1, 2)).argmax())].to("cpu", torch.complex128)
    # The wave's centre is at pixel size // 2, the spectrum's phase counts from pixel 0.
    wave = torch.fft.ifftshift(torch.fft.ifft2(strongest))
    chi, learned = probe.chi.to("cpu", torch.float64), probe.correction_A.to("cpu", torch.float64)
    k = probe.k_axis.to("cpu", torch.float64)
    expected = aberration_phase(nominal, k[:, None], k[None, :], wavelength_A) + torch.einsum("c,cyx->yx", learned, chi)
    field = torch.fft.fftshift(torch.fft.fft2(wave) * torch.polar(torch.ones_like(expected), expected))
    slopes = torch.stack([k[:, None].expand_as(expected), k[None, :].expand_as(expected)])
    basis = torch.fft.fftshift(torch.cat([chi, slopes]), dim=(-2, -1))
    # Columns of very different units: each in turns of its own over the spectrum.
    unit = 1 / basis.flatten(1).norm(dim=1).clamp_min(1e-300)
    basis = basis * unit[:, None, None]
    change = _from_slopes(field, basis)
    for _ in range(_POLISH):
        change = change + _from_phase(field * torch.exp(1j * torch.einsum("c,cyx->yx", change, basis)), basis)
    return corrected(nominal, probe.terms, (learned + (change * unit)[: len(chi)]).tolist())


def _from_slopes(field: Tensor, basis: Tensor) -> Tensor:
    """Coefficients of ``basis`` (n, y, x) in minus the phase of ``field``, from differences between neighbours."""
    rows, phases = [], []
    for axis in (-2, -1):
        n = field.shape[axis] - 1
        pair = field.narrow(axis, 1, n) * field.narrow(axis, 0, n).conj()
        weight = pair.abs().sqrt()
        rows.append((basis.diff(dim=axis) * weight).flatten(1).mT)
        phases.append((-pair.angle() * weight).flatten())
    return torch.as_tensor(torch.linalg.lstsq(torch.cat(rows), torch.cat(phases)[:, None], driver="gelsd").solution[:, 0])


def _from_phase(field: Tensor, basis: Tensor) -> Tensor:
    """The same from the phase itself, about its mean."""
    weight = field.abs()
    phase = -(field / torch.polar(torch.ones((), dtype=weight.dtype), field.sum().angle())).angle()
    design = torch.cat([basis, torch.ones_like(basis[:1])])
    return torch.as_tensor(torch.linalg.lstsq((design * weight).flatten(1).mT, (phase * weight).flatten()[:, None], driver="gelsd").solution[:-1, 0])
