"""Tilt-corrected bright field (parallax): the bright-field images brought over each other, on a grid finer than the scan.

Each part k of the bright-field disk sees the object from its own direction, displaced by -A^T lambda C k (:mod:`ptycho.shifts`). Moved back and added
up they make an image with the contrast transfer 2 sin(pi lambda Q.C.Q), as a plane-wave image at this defocus would have it. The displacements are
no whole scan steps: what one image has aliased another has elsewhere, and the sum has frequencies beyond those of the scan (Varnavides et al.,
arXiv:2507.18610). Each frequency weighted with its transfer instead gives the phase, with the signs of the transfer undone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ptycho.bright_field import BrightField, bright_field
from ptycho.data import Dataset4D
from ptycho.errors import RecipeError
from ptycho.shifts import fit_shifts
from ptycho.weak_phase import Optics, WeakPhase

#: Scan points over which the images fade out beyond their border, and share of the best transfer at which frequencies are held back.
_FADE, _HELD_BACK = 4, 0.05
_MOST_UPSAMPLE = 8
_BLOCK = 256


@dataclass(frozen=True, eq=False)
class Parallax:
    """Images float32 (slow x upsample, fast x upsample) in the axes of the scan, their pixel in Å (slow, fast), and the optics behind them.

    ``bright_field`` is the aligned sum, relative to its mean; ``phase`` in rad has the contrast transfer undone (Wiener), atoms positive.
    ``defocus_A`` (positive is underfocus) and the orientation in ``optics`` are those fitted: a start for the probe.
    """

    bright_field: NDArray[np.float32]
    phase: NDArray[np.float32]
    pixel_A: tuple[float, float]
    optics: Optics
    explained: float

    @property
    def defocus_A(self) -> float:
        """Positive is underfocus."""
        return -self.optics.C10_A


def parallax(data: Dataset4D, upsample: int = 2, optics: Optics | None = None) -> Parallax:
    """The tilt-corrected bright-field image, ``upsample`` times as fine as the scan.

    ``optics`` are fitted to the displacements and the transfer of the images when not given (:class:`ptycho.weak_phase.WeakPhase`). Raises DataError
    as :func:`ptycho.bright_field.bright_field`, RecipeError for an ``upsample`` that is no whole number from 1 to 8.
    """
    if upsample != int(upsample) or not 1 <= upsample <= _MOST_UPSAMPLE:
        raise RecipeError(f"upsample = {upsample}: a whole number from 1 to {_MOST_UPSAMPLE} is needed")
    bright = bright_field(data)
    weak = WeakPhase(bright)
    if optics is None:
        optics = _fitted(weak, 1 / data.pixel_invA.value)
    aligned, phase = _images(weak, optics, int(upsample))
    pixel = (bright.step_A[0] / upsample, bright.step_A[1] / upsample)
    return Parallax(aligned, phase, pixel, optics, weak.explained(optics))


def _fitted(weak: WeakPhase, widest_A: float) -> Optics:
    """The likeliest optics from the displacements, of the sign that makes atoms positive."""
    shifts = fit_shifts(weak.bright, widest_A)
    starts = [Optics.of(s.orientation, -s.underfocus_A2 / weak.bright.wavelength_A) for s in shifts]
    _, optics = max((weak.fit(start, astigmatic=False) for start in starts), key=lambda fit: fit[0])
    _, optics = weak.fit(optics)
    return optics if weak.skewness(optics) >= 0 else optics.twin


def _images(weak: WeakPhase, optics: Optics, upsample: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(aligned sum, phase)."""
    bright = weak.bright
    (slow, fast), g = bright.scan_shape, _spectrum(bright)
    padded = (slow + 2 * _FADE, fast + 2 * _FADE)
    fine = (padded[0] * upsample, padded[1] * upsample)
    qy, qx = (np.fft.fftfreq(n, step / upsample) for n, step in zip(fine, bright.step_A, strict=True))
    q = torch.from_numpy(np.stack(np.meshgrid(qy, qx, indexing="ij"), -1).reshape(-1, 2)).float()
    # A finer grid repeats the spectrum of each image: which repetition is right, the sum over k decides.
    place = (np.arange(fine[0]) % padded[0])[:, None] * padded[1] + np.arange(fine[1]) % padded[1]
    places = torch.from_numpy(place.ravel())
    aligned, phase = torch.zeros(len(q), dtype=torch.complex64), torch.zeros(len(q), dtype=torch.complex64)
    within = torch.nonzero((torch.linalg.vector_norm(q, dim=1) < 2 * bright.aperture_invA) & (q != 0).any(1))[:, 0]
    with torch.no_grad():
        for part in within.split(_BLOCK):
            here, gamma = g[places[part]], weak.transfer(optics, q[part])
            aligned[part] = (weak.displacement(optics, q[part]).conj() * here).mean(1)
            phase[part] = (gamma.conj() * here).sum(1) / 1j / (gamma.abs().square().sum(1) + _HELD_BACK * gamma.shape[1])
    images = [torch.fft.ifft2(image.reshape(fine)).real.numpy() * upsample**2 for image in (aligned, phase)]
    rows, columns = (slice(_FADE * upsample, (_FADE + n) * upsample) for n in (slow, fast))
    return images[0][rows, columns], images[1][rows, columns]


def _spectrum(bright: BrightField) -> torch.Tensor:
    """Fourier transforms (q, k) of the images, which fade to their mean beyond the border."""
    pad = [(0, 0), (_FADE, _FADE), (_FADE, _FADE)]
    fade = np.sin(np.arange(1, _FADE + 1) * math.pi / 2 / (_FADE + 1)) ** 2
    images = np.pad(bright.images[bright.inside], pad, mode="edge")
    for axis in (1, 2):
        shape = [1, 1, 1]
        shape[axis] = -1
        ramp = np.concatenate([fade, np.ones(images.shape[axis] - 2 * _FADE), fade[::-1]]).astype(np.float32)
        images *= ramp.reshape(shape)
    return torch.from_numpy(np.ascontiguousarray(np.fft.fft2(images).reshape(len(images), -1).T.astype(np.complex64)))
