"""Natural steps of everything but object and probe: positions, tilt, thickness, aberrations.

Each of these multiplies a wave by exp(-i C kappa(q)) in reciprocal space. The majoriser of the amplitude loss then has the curvature
2 sum kappa^2 |wave|^2, and the gradient divided by it is a step that can be taken without a rate to tune (Guizar-Sicairos & Fienup,
Opt. Express 16 (2008) 7264, for positions).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ptycho.adjoint import Gradients, Wants
from ptycho.model import Ptychography
from ptycho.optics import propagation_phase
from ptycho.solvers.base import Due

#: A position moves by at most this many pixels per visit.
_MOST_PX = 0.1
#: Share of the natural step that is taken: the other parameters have not settled yet.
_RELAXATION = 0.5


class Refinement:
    """Steps on the geometric parameters that are due."""

    def __init__(self, model: Ptychography, natural_step: float) -> None:
        self.model, self.natural_step = model, natural_step

    def wants(self, due: Due) -> Wants:
        """Which extra derivatives the engine has to form."""
        propagates = self.model.object.transmission.shape[1] > 1
        return Wants(offsets=due.positions, propagation=propagates and (due.tilt or due.thickness))

    def step(self, index: Tensor, found: Gradients, spectrum: Tensor, due: Due) -> None:
        """Move what is due along its gradient."""
        power = (spectrum.real.square() + spectrum.imag.square()).sum(0)
        if found.offsets is not None:
            self._positions(index, found.offsets, power)
        if found.tilt is not None and due.tilt:
            self._tilt(index, found.tilt, power)
        if found.thickness is not None and due.thickness:
            self._thickness(len(index), found.thickness, power)
        if found.spectrum is not None and due.aberrations and len(self.model.probe.chi):
            self._aberrations(len(index), found.spectrum, spectrum, power)

    def _positions(self, index: Tensor, gradient: Tensor, power: Tensor) -> None:
        model = self.model
        f = torch.fft.fftfreq(power.shape[-1], dtype=power.dtype, device=power.device)
        curvature = 2 * (2 * math.pi) ** 2 * torch.stack([(power * f[:, None] ** 2).sum(), (power * f**2).sum()])
        step = (_RELAXATION * self.natural_step * gradient / curvature).clamp(-_MOST_PX, _MOST_PX)
        positions = model.positions.value_px.data
        positions[index] -= step
        # A window has to stay on the canvas.
        half, (rows, columns) = model.size // 2, model.object.transmission.shape[-2:]
        low = torch.full((2,), float(half), device=positions.device)
        high = torch.tensor([rows, columns], device=positions.device) - (model.size - half) - 1.0
        positions.clamp_(low, high)

    def _tilt(self, index: Tensor, gradient: Tensor, power: Tensor) -> None:
        """Slices act coherently, hence the factor of their number (the gaps' contributions add up in amplitude)."""
        p = self.model.propagator
        gaps = p.thickness_A.detach()[:-1]
        slope = 2 * math.pi * gaps / torch.cos(p.tilt_rad.detach()).square().mean()
        moment = torch.stack([(power * p.ky**2).sum(), (power * p.kx**2).sum()])
        curvature = 2 * len(gaps) * (slope**2).sum() * moment
        step = _RELAXATION * self.natural_step * gradient / curvature
        if len(p.tilt_rad) == 1:
            p.tilt_rad.data -= step / len(index)
        else:
            p.tilt_rad.data[index] -= step

    def _thickness(self, count: int, gradient: Tensor, power: Tensor) -> None:
        p = self.model.propagator
        kappa = propagation_phase(p.ky, p.kx, p.wavelength_A, p.tilt_rad.detach().mean(0, keepdim=True))[0]
        curvature = 2 * len(gradient) * (kappa**2 * power).sum()
        p.thickness_A.data -= _RELAXATION * self.natural_step * gradient / (curvature * count)
        p.thickness_A.data.clamp_(min=0.1)

    def _aberrations(self, count: int, gradient: Tensor, spectrum: Tensor, power: Tensor) -> None:
        """dL/dC = sum chi Im(conj(Y) P), with Y the gradient with respect to the spectrum P (torch's convention)."""
        probe = self.model.probe
        slope = torch.einsum("cyx,yx->c", probe.chi, (gradient.conj() * spectrum).imag.sum(0))
        curvature = 2 * torch.einsum("cyx,yx->c", probe.chi.square(), power)
        probe.correction_A.data -= _RELAXATION * self.natural_step * slope / (curvature * count).clamp_min(1e-30)


def illumination(model: Ptychography) -> Tensor:
    """Electrons that fall on each pixel of the object during a pass, (y, x): sum over positions and modes of |P(r - R)|^2."""
    size = model.size
    intensity = model.probe.wave.detach().abs().square().sum(0)
    canvas = torch.zeros(model.object.transmission.shape[-2:], dtype=intensity.dtype, device=intensity.device)
    index = torch.arange(len(model.positions.value_px), device=intensity.device)
    corners, _ = model.positions.split(index, size)
    counts = torch.zeros_like(canvas)
    counts.index_put_((corners[:, 0], corners[:, 1]), torch.ones_like(corners[:, 0], dtype=canvas.dtype), accumulate=True)
    # The sum over windows is a convolution of the corners with the probe's intensity; corners leave room for a window, so nothing wraps.
    product = torch.fft.rfft2(counts) * torch.fft.rfft2(intensity, s=canvas.shape)
    return torch.fft.irfft2(product, s=canvas.shape).clamp_min_(0)
