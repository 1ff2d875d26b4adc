"""What the adjoint does between its Fourier transforms, pattern by pattern and pixel by pixel: the reference, in plain torch.

On an NVIDIA GPU :mod:`ptycho.elementwise_triton` does the same in fewer passes over memory.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass

import torch
from torch import Tensor

from ptycho.constraint.object import normalise
from ptycho.detector import Detector
from ptycho.loss import Loss
from ptycho.optics import shift_ramps
from ptycho.windows import add_windows, cut_windows


@dataclass(frozen=True)
class Momentum:
    """Numbers of :meth:`Elementwise.momentum_step`.

    ``length`` (on the device), ``factor`` of the gradient, ``momentum`` mu, ``prior`` per rad of phase (0: none).
    Outside of the ``bounds`` of :meth:`Elementwise.bounds` nothing moves.
    """

    length: Tensor
    factor: float
    momentum: float
    prior: float = 0.0
    pure_phase: bool = False
    bounds: Tensor | None = None


class Elementwise:
    """For one detector and one loss. Waves are complex (b, states, modes, y, x), ``weights`` (states,) of the incoherent sum over states.

    ``missing`` tells that NaN in the counts stands for pixels that were not measured.
    """

    def __init__(self, detector: Detector, loss: Loss, missing: bool = False) -> None:
        self.detector, self.loss, self.missing = detector, loss, missing
        self._masked = bool((detector.mask != 1).any())

    def ramps(self, offsets_px: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """(b, y, 1) and (b, 1, x): :func:`ptycho.optics.shift_ramps` over ``size``."""
        ramp_y, ramp_x = shift_ramps(offsets_px, size)
        return ramp_y / size, ramp_x

    def entrance(self, spectrum: Tensor, ramps: tuple[Tensor, Tensor], ramp: Tensor, out: Tensor) -> None:
        """``ramp`` (b, y, x) = product of the ``ramps``, ``out`` (b, modes, y, x) = ramp * ``spectrum`` (modes, y, x)."""
        torch.mul(ramps[0], ramps[1], out=ramp)
        torch.mul(spectrum, ramp[:, None], out=out)

    def windows(self, canvas: Tensor, corners: Tensor, out: Tensor) -> Tensor:
        """Windows of ``canvas`` (states, slices, y, x) at ``corners`` (b, 2), in ``out`` (b, states, slices, k, k) where that is faster."""
        return cut_windows(canvas, corners, out)

    def intensity(self, exit_wave: Tensor, weights: list[float], out: Tensor) -> Tensor:
        """sum over states and modes of weight |wave|^2, into ``out`` (b, y, x)."""
        out.zero_()
        for state, weight in enumerate(weights):
            for mode in range(exit_wave.shape[2]):
                real, imaginary = torch.view_as_real(exit_wave[:, state, mode]).unbind(-1)
                out.addcmul_(real, real, value=weight).addcmul_(imaginary, imaginary, value=weight)
        return out

    def slope(self, intensity: Tensor, counts: Tensor, measures: bool) -> tuple[Tensor, Tensor | None]:
        """d loss / d image (b, ky, kx) on the detector, 0 where nothing was measured, and the summed loss if ``measures``."""
        image = self.detector(intensity)
        weight = self.detector.mask if self._masked else None
        if self.missing:
            measured = torch.isfinite(counts)
            counts = torch.nan_to_num(counts, nan=0.0)
            weight = measured * self.detector.mask
        total = None
        if measures:
            value = self.loss.value(image, counts)
            total = (value if weight is None else value * weight).sum(dtype=torch.float64)
        slope = self.loss.slope(image, counts)
        return (slope if weight is None else slope.mul_(weight)), total

    def turn_back(self, exit_wave: Tensor, slope: Tensor, weights: list[float]) -> Tensor:
        """d loss / d (exit wave) = weight * d loss / d intensity * conj(exit wave), in the exit wave's memory; ``slope`` from :meth:`slope`."""
        slope = self.detector.adjoint(slope)
        for state, weight in enumerate(weights):
            exit_wave[:, state].mul_((slope * weight)[:, None])
        return exit_wave.conj_physical_()

    def object_side(self, wave: Tensor, back: Tensor, patches: Tensor, total: Tensor | None, onward: bool) -> None:
        """``total`` = sum over modes of wave * back, if it is wanted; then ``back`` *= ``patches``, if ``onward``; both (b, states, y, x)."""
        if total is not None:
            torch.mul(wave[:, :, 0], back[:, :, 0], out=total)
            for mode in range(1, back.shape[2]):
                total.addcmul_(wave[:, :, mode], back[:, :, mode])
        if onward:
            back.mul_(patches[:, :, None])

    def gather_back(self, canvas: Tensor, windows: Tensor, corners: Tensor, pool: Executor | None, workers: int) -> None:
        """``canvas`` (states, slices, y, x) = twice the conjugate of the sum of ``windows`` (b, states, slices, k, k) at ``corners`` (b, 2)."""
        add_windows(canvas.zero_(), windows, corners, pool, workers)
        canvas.conj_physical_().mul_(2)

    def bounds(self, corners: Tensor, size: int) -> Tensor | None:
        """First row and column that windows at ``corners`` (b, 2) touch, and those behind the last, (4,); None where the box is known."""
        return None

    def sum_patterns(self, back: Tensor, ramp: Tensor, total: Tensor) -> None:
        """``total`` (modes, y, x) += sum over patterns and states of ramp * back; ``back`` may be overwritten, ``ramp`` is (b, y, x)."""
        total += back.mul_(ramp[:, None, None]).sum((0, 1))

    def momentum_step(self, leaf: Tensor, velocity: Tensor, gradient: Tensor, scale: Tensor | float, step: Momentum) -> None:
        """v <- mu v + z, x <- x - step.length (z + mu v), z = scale (factor g + slope of the prior); the gradient is overwritten.

        Nesterov, in the form of Sutskever et al. 2013. All complex and of the leaf's shape (layers, y, x) or (..., y, x); ``scale`` (y, x) is real.
        """
        gradient.mul_(step.factor)
        if step.prior:
            # The slope of phase times prior.
            gradient.add_(leaf, alpha=0.5j * step.prior)
        gradient.mul_(scale)
        velocity.mul_(step.momentum).add_(gradient)
        leaf.sub_(gradient.add_(velocity, alpha=step.momentum).mul_(step.length))
        if step.pure_phase:
            normalise(leaf)
